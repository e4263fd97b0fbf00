"""Readers of the layouts in which images lie on disk."""
