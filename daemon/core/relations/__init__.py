"""Relations: natural prompts for common Wikidata properties, and how values are said."""
