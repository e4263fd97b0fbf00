"""bench: which way of training a Vision Transformer is better, by how much, at what cost."""

from __future__ import annotations

__version__ = "0.1.0"
