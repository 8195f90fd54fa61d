"""Stateful tests against a model that is simple enough to be believed."""
