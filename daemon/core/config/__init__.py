"""The configuration and its sections."""
