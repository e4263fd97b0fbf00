"""Data sets: which bytes, which images, which labels."""
