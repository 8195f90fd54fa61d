"""Read-only views of the ledger for operators, the API and Prometheus."""
