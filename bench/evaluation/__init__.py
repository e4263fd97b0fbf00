"""Scoring a network: one evaluation loop, metrics, predictions."""
