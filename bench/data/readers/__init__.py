"""Readers of the layouts in which images are stored on disk."""
