"""What daemon and workers share: names, errors, corrections, configuration, files and the ledger."""
