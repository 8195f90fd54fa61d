"""``errata locate``: which layers of a model to edit, by causal tracing and by real edits."""
