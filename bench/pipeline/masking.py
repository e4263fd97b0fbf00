"""Masks for masked image modelling: block-wise as in BEiT and data2vec, random, or none. True is hidden.

All draws come from Python's `random`, which the data loader has seeded for this image.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bench.errors import BenchError, unknown

ATTEMPTS = 10  # blocks tried before the mask is left as it is
ASPECT = 0.3  # height / width of a block is between this and its inverse

Masking = Callable[[], np.ndarray]


@dataclass(frozen=True)
class BlockMasking:
    """Hide rectangles until `hidden_patches` are hidden: an upper bound, which a third of the masks do not reach.

    block_min, block_max: bounds of the area that is drawn, in patches. A block may hide fewer new patches, since
    blocks overlap. No block is as high or as wide as the grid.
    Source: BEiT masking_generator.py; P-BEiT Algorithm 1 differs (aspect uniform instead of log-uniform).
    """

    grid: int
    hidden_patches: int
    block_min: int
    block_max: int

    def __call__(self) -> np.ndarray:
        """Draw a mask: (grid, grid) of bool."""
        hidden = np.zeros((self.grid, self.grid), dtype=bool)
        while (remaining := self.hidden_patches - int(hidden.sum())) > 0:
            block = self._fitting_block(hidden, min(remaining, self.block_max))
            if block is None:
                break
            hidden[block] = True
        return hidden

    def _fitting_block(self, hidden: np.ndarray, most: int) -> tuple[slice, slice] | None:
        """A block that hides 1 to `most` patches not hidden before; None after too many attempts."""
        for _ in range(ATTEMPTS):
            area = random.uniform(self.block_min, most)  # `most` may be the smaller bound; uniform takes either order
            aspect = math.exp(random.uniform(math.log(ASPECT), -math.log(ASPECT)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= self.grid or width >= self.grid:
                continue
            top = random.randint(0, self.grid - height)
            left = random.randint(0, self.grid - width)
            block = (slice(top, top + height), slice(left, left + width))
            if 0 < height * width - hidden[block].sum() <= most:
                return block
        return None


@dataclass(frozen=True)
class RandomMasking:
    """Hide exactly `hidden_patches` patches, each set of that size equally likely (P-BEiT Table 4, ablation)."""

    grid: int
    hidden_patches: int

    def __call__(self) -> np.ndarray:
        """Draw a mask: (grid, grid) of bool."""
        hidden = np.zeros(self.grid**2, dtype=bool)
        hidden[random.sample(range(self.grid**2), self.hidden_patches)] = True
        return hidden.reshape(self.grid, self.grid)


@dataclass(frozen=True)
class NoMasking:
    """Hide nothing (P-BEiT Table 4, ablation)."""

    grid: int

    def __call__(self) -> np.ndarray:
        """(grid, grid) of False."""
        return np.zeros((self.grid, self.grid), dtype=bool)


def build(
    kind: str, grid: int, *, hidden_fraction: float, block_min_fraction: float, block_max_fraction: float
) -> Masking:
    """The masking named `kind` (block, random, none), with its counts as fractions of the grid's patches.

    So a recipe for 14x14 patches also fits smaller grids; at 14x14 the fractions are the authors' counts.
    """
    patches = grid**2
    hidden_patches = round(hidden_fraction * patches)
    if kind == "none":
        return NoMasking(grid)
    if not 0 < hidden_patches < patches:
        raise BenchError(
            f"hidden_fraction = {hidden_fraction:g} hides {hidden_patches} of {patches} patches; "
            f"between 1 and {patches - 1} can be hidden: 0.4 would be {round(0.4 * patches)}"
        )
    if kind == "random":
        return RandomMasking(grid, hidden_patches)
    if kind != "block":
        raise unknown("masking", kind, ("block", "random", "none"))
    block_min = max(round(block_min_fraction * patches), 1)
    block_max = round(block_max_fraction * patches)
    if block_max < block_min:
        raise BenchError(
            f"block_max_fraction = {block_max_fraction:g} is below block_min_fraction = {block_min_fraction:g}"
        )
    return BlockMasking(grid, hidden_patches, block_min, block_max)
