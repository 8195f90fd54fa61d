"""What operators, the API and Prometheus see: read-only functions of a connection to the ledger."""
