"""``errata locate`` chooses the layers to edit by causal tracing and by real edits."""
