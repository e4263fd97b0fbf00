"""Stochastic depth, drawn per image: the number of processes and gradient accumulation do not change it."""

from __future__ import annotations

import torch
from timm.layers import DropPath as TimmDropPath
from torch import Tensor, nn

from bench.seeding import derive


class DropPath(nn.Module):
    """Drops a residual branch for whole images with probability `rate`, and scales the others by 1 / (1 - rate).

    Draws are those of the last `seed_drop_path`; before the first call they come from torch's global generator.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.draws: Tensor | None = None  # (B,) in [0, 1), of this micro-batch

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return branch
        draws = torch.rand(len(branch), device=branch.device) if self.draws is None else self.draws
        assert len(draws) == len(branch), f"draws for {len(draws)} images, a batch of {len(branch)}"
        scale = (draws >= self.rate).to(branch.dtype) / (1.0 - self.rate)
        return branch * scale.view(-1, *[1] * (branch.ndim - 1))

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def replace_drop_paths(module: nn.Module) -> nn.Module:
    """Replace every DropPath of timm's in `module` by ours, in place; returns the module."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, TimmDropPath):
                setattr(parent, name, DropPath(child.drop_prob))
    return module


def seed_drop_path(module: nn.Module, *, seed: int, step: int, positions: Tensor, batch_size: int) -> None:
    """Draw stochastic depth of every layer in `module` for the next micro-batch.

    A draw depends only on the seed, the step, the layer and the image's position in the global batch of `batch_size`
    images. positions: (B,) of the images in this micro-batch.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, DropPath)]
    if not layers:
        return
    generator = torch.Generator().manual_seed(derive(seed, "drop-path", step))
    # Drawn for the whole global batch, of which each process takes its images: all processes see the same draws.
    draws = torch.rand(len(layers), batch_size, generator=generator)[:, positions.cpu()]
    device = next(module.parameters()).device
    for layer, row in zip(layers, draws.to(device, non_blocking=True), strict=True):
        layer.draws = row
