"""Published editing methods to compare with: one file a paper, on the parts of the engine."""
