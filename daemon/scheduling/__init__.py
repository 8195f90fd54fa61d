"""The repeated jobs of the daemon: pull feeds, hand out batches, order surveys."""
