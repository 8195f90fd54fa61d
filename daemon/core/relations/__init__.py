"""Prompts for common Wikidata properties, and the wording of their values."""
