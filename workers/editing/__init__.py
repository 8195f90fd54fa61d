"""Locate-then-edit for sequences without end: keys, targets, the linear associative memory, guards."""
