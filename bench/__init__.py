"""bench: which way of training a Vision Transformer is better, by how much, at what cost."""

__version__ = "0.1.0"
