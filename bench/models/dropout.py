"""Dropout whose draws belong to the image, not to the process that happens to hold it.

Departs from this where attention is one fused kernel (on GPUs): that kernel draws its own dropout, seeded by the step
and the process, so there a recipe with `attn_dropout` comes out the same only in distribution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bench.seeding import derive


class Dropout(nn.Dropout):
    """As PyTorch's, but each image's draws come from a seed of its own, given by the last `fix_dropout`.

    The first axis of its input is the images. Before the first `fix_dropout` it is PyTorch's.
    """

    seeds: Sequence[int] | None = None

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0.0 or self.seeds is None:
            return super().forward(input)
        assert len(self.seeds) == len(input), f"seeds for {len(self.seeds)} images, a batch of {len(input)}"
        return input * (self._kept_by_all(input) / (1.0 - self.p)).to(input.dtype)

    @torch.compiler.disable  # a compiler would take the seeds for constants
    def _kept_by_all(self, images: Tensor) -> Tensor:
        assert self.seeds is not None
        generator = torch.Generator(images.device)
        return torch.stack([self._kept(images[0], generator.manual_seed(seed)) for seed in self.seeds])

    def _kept(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Which elements of an image stay. One draw serves four of them (p in steps of 1/65536): 5 times faster."""
        count = -(-image.numel() // 4)
        draws = torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator, device=image.device)
        return draws.view(torch.int16)[: image.numel()].view_as(image) >= round(self.p * 65536) - 32768


class ChannelDropout(Dropout):
    """The same for pictures (B, C, H, W), of which whole channels are dropped (PyTorch's Dropout2d)."""

    def forward(self, input: Tensor) -> Tensor:
        return input * super().forward(torch.ones_like(input[..., :1, :1])) if self.training else input


def replace_dropouts(module: nn.Module) -> None:
    """Put our Dropout in the place of every active one of PyTorch's in `module`."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout and child.p > 0.0:
                setattr(parent, name, Dropout(child.p))


def seed_dropout(module: nn.Module, *, seed: int, step: int, positions: Tensor) -> None:
    """Decide every draw of dropout in `module` for the next micro-batch.

    A draw depends on the seed, the step, the layer and the image's position in the global batch, and on nothing else.
    positions: (B,) of the images in this micro-batch, on the CPU.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, Dropout)]
    for number, layer in enumerate(layers):
        layer.seeds = [derive(seed, "dropout", step, number, position) for position in positions.tolist()]
