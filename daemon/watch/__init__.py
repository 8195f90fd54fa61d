"""Judge revisions by their probes, and roll back those that are degraded."""
