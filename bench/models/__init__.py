"""Networks: backbones, heads, decoders, tokenizers, and how their weights start."""
