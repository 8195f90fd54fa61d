"""Publish live revisions as model folders and notify their consumers."""
