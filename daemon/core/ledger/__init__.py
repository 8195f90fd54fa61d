"""The ledger: its tables and everything that reads or changes them."""
