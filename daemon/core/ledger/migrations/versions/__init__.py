"""Numbered migrations of the ledger's schema; each is frozen once it has landed."""
