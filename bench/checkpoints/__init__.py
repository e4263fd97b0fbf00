"""Weights in and out: published checkpoints, warm starts, exports."""
