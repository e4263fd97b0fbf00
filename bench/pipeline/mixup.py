"""Mixup and CutMix of a batch, with random draws that depend on the images and not on the process they are on."""

from __future__ import annotations

import torch
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from bench.config.schema import Recipe
from bench.errors import BenchError
from bench.seeding import derive, forked

MIX_PAIRS = 32  # pairs that share a draw: 64 images, the batch of one of DeiT's GPUs (D: run_with_submitit.py)


class Mixer:
    """Mixup and CutMix of a global batch, and soft targets with label smoothing.

    Image p of a batch of B is mixed with image p + B/2 (mod B). The draws are a function of (seed, step, p), the
    same for each 32 pairs, so neither the number of processes nor accumulation changes the mix, as long as every
    micro-batch holds both partners. With mixup and cutmix at 0 images pass unchanged.
    """

    def __init__(self, recipe: Recipe, classes: int, cutmix_minmax: tuple[float, float] | None = None) -> None:
        self.classes, self.smoothing = classes, recipe.label_smoothing
        mixing = recipe.mixup > 0 or recipe.cutmix > 0 or cutmix_minmax is not None
        self.active = mixing and recipe.mix_prob > 0
        self._mixup = Mixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            cutmix_minmax=cutmix_minmax,
            prob=recipe.mix_prob,
            switch_prob=recipe.mix_switch_prob,
            label_smoothing=recipe.label_smoothing,
            num_classes=classes,
        )

    def __call__(
        self, images: Tensor, labels: Tensor, *, seed: int, step: int, positions: Tensor, batch_size: int
    ) -> tuple[Tensor, Tensor]:
        """Mixed float images (B, C, H, W) and soft targets (B, K), in the order of the input.

        positions: (B,) places in the global batch of `batch_size`; on the CPU, so that reading them does not sync.
        Raises BenchError when `batch_size` is odd.
        """
        assert images.is_floating_point(), "images are mixed after normalisation"
        if not self.active:
            return images, mixup_target(labels, self.classes, smoothing=self.smoothing)
        mixed = torch.empty_like(images)
        targets = images.new_empty((len(images), self.classes), dtype=torch.float32)  # whatever the images' precision
        for group, rows in _partners(positions.tolist(), batch_size).items():
            with forked(derive(seed, "mix", step, group)):  # timm's Mixup draws from NumPy's global generator
                mixed[rows], targets[rows] = self.mix(images[rows], labels[rows])
        return mixed, targets

    def mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch with itself reversed, drawing from NumPy's global generator; `images` is overwritten."""
        return self._mixup(images, labels)


def _partners(positions: list[int], batch_size: int) -> dict[int, list[int]]:
    """Rows of each group of pairs, a row's partner at the mirrored place, since timm mixes a batch with its reverse."""
    if batch_size % 2:
        raise BenchError(f"batch_size = {batch_size} is odd, but mixup and cutmix mix images in pairs; make it even")
    half = batch_size // 2
    row = {position: index for index, position in enumerate(positions)}
    assert len(row) % 2 == 0 and all((p + half) % batch_size in row for p in row), "a micro-batch splits a pair"
    groups: dict[int, list[int]] = {}
    for pair in sorted(position for position in row if position < half):
        groups.setdefault(pair // MIX_PAIRS, []).append(pair)
    return {
        group: [row[pair] for pair in pairs] + [row[pair + half] for pair in reversed(pairs)]
        for group, pairs in groups.items()
    }
