"""The configuration, one module for each group of sections."""
