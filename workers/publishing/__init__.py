"""Publish live revisions as model folders and tell their consumers."""
