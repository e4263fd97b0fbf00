"""Networks: backbones, heads, decoders, tokenizers, initialisation."""
