"""Answer completion requests with the live revision."""
