"""Look after the store: disk space, scrubbing, garbage collection, backup, and the doctor."""
