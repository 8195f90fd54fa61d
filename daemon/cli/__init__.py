"""The `errata` command line."""
