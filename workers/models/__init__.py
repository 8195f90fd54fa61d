"""Fetch, convert and open the model that is edited."""
