"""Where corrections come from: one file a kind of feed, one line in ``base`` to register it."""
