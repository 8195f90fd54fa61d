"""Tests of single subjects."""
