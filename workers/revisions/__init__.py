"""Stored revisions: blobs, pairs, loading and recovery."""
