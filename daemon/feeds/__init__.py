"""The sources of corrections: one file per kind of feed, and one line in ``base`` that names it."""
