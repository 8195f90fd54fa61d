"""Decide which statements become corrections, and store them."""
