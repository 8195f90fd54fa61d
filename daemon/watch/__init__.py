"""Judge revisions by their probes and take bad ones back."""
