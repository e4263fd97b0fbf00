"""Dropout, drawn per image: the number of processes and gradient accumulation do not change it.

Except in fused attention (on GPUs): that kernel draws its own dropout, seeded by the step and the process, so there a
recipe with `attn_dropout` gives the same result only in distribution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bench.seeding import derive


class Dropout(nn.Dropout):
    """PyTorch's dropout, but each image's draws come from a seed of its own, set by the last `seed_dropout`.

    The first axis of the input is the images. Before the first `seed_dropout` it is PyTorch's.
    """

    seeds: Sequence[int] | None = None

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0.0 or self.seeds is None:
            return super().forward(input)
        assert len(self.seeds) == len(input), f"seeds for {len(self.seeds)} images, a batch of {len(input)}"
        return input * (self._keep_masks(input) / (1.0 - self.p)).to(input.dtype)

    @torch.compiler.disable  # a compiler would take the seeds for constants
    def _keep_masks(self, images: Tensor) -> Tensor:
        """True at the elements that stay, of the shape of `images`."""
        assert self.seeds is not None
        generator = torch.Generator(images.device)
        return torch.stack([self._keep_mask(images[0], generator.manual_seed(seed)) for seed in self.seeds])

    def _keep_mask(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """True at the elements of an image that stay."""
        # A 64-bit draw is cut into four of 16 bits, so p comes in steps of 1/65536: 5 times faster.
        count = -(-image.numel() // 4)
        draws = torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator, device=image.device)
        return draws.view(torch.int16)[: image.numel()].view_as(image) >= round(self.p * 65536) - 32768


class ChannelDropout(Dropout):
    """The same for feature maps (B, C, H, W), of which whole channels are dropped (PyTorch's Dropout2d)."""

    def forward(self, input: Tensor) -> Tensor:
        return input * super().forward(torch.ones_like(input[..., :1, :1])) if self.training else input


def replace_dropouts(module: nn.Module) -> None:
    """Replace every active Dropout of PyTorch's in `module` by ours, in place."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout and child.p > 0.0:
                setattr(parent, name, Dropout(child.p))


def seed_dropout(module: nn.Module, *, seed: int, step: int, positions: Tensor) -> None:
    """Set the seeds of every Dropout in `module` for the next micro-batch.

    A draw depends only on the seed, the step, the layer and the image's position in the global batch.
    positions: (B,) of the images in this micro-batch, on the CPU.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, Dropout)]
    for number, layer in enumerate(layers):
        layer.seeds = [derive(seed, "dropout", step, number, position) for position in positions.tolist()]
