"""Numbered migrations of the ledger's schema. What a migration does never changes once it has landed."""
