"""Resize position embeddings and relative-bias tables to another patch grid, as the authors do."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SPECIAL_ROWS = 3  # class token to patch, patch to class token, class token to itself


def resize_embedding(embedding: Tensor, grid: int, *, prefix_tokens: int) -> Tensor:
    """Resize an absolute position embedding (1, P + s*s, D) to `grid` x `grid` patches: (1, P + grid*grid, D).

    The rows of the P prefix tokens stay, the others are resized bicubically.
    Source: DeiT main.py, BEiT run_class_finetuning.py.
    """
    prefix, patches = embedding[:, :prefix_tokens], embedding[:, prefix_tokens:]
    side = math.isqrt(patches.shape[1])
    if side == grid:
        return embedding
    feature_map = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    feature_map = F.interpolate(feature_map, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([prefix, feature_map.flatten(2).transpose(1, 2).to(embedding.dtype)], dim=1)


def table_grid(table: Tensor) -> int:
    """Side of the patch grid of a relative-bias table, which has (2 * grid - 1)**2 + 3 rows."""
    return (math.isqrt(len(table) - SPECIAL_ROWS) + 1) // 2


def resize_table(table: Tensor, grid: int) -> Tensor:
    """Resize a relative-bias table (rows, heads) to a grid of `grid` x `grid` patches.

    The old offsets are placed at geometrically growing distances, so that near ones keep their meaning and far ones
    stretch; a cubic spline through them is read at the new integer offsets. Source: BEiT run_class_finetuning.py.
    """
    source = table_grid(table)
    if source == grid:
        return table
    old, new = geometric_offsets(source, grid), np.arange(1.0 - grid, grid)
    offsets, special = table[:-SPECIAL_ROWS], table[-SPECIAL_ROWS:]
    columns = [_resample(column, old, new) for column in offsets.T.double().cpu().numpy()]  # one per head
    resized = torch.from_numpy(np.stack(columns, axis=1)).to(table)  # ((2 * grid - 1)**2, heads)
    return torch.cat([resized, special])


def _resample(column: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Read one head's bias on the `old` offsets at the `new` ones; offsets outside are clamped to the border."""
    from scipy.interpolate import RectBivariateSpline  # slow to import, and needed only when a grid changes

    spline = RectBivariateSpline(old, old, column.reshape(len(old), len(old)), s=0)
    inside = new.clip(old[0], old[-1])
    return spline(inside, inside).ravel()


def geometric_offsets(source: int, target: int) -> np.ndarray:
    """Offsets 0, +-1, +-(1 + q), ... of `source` patches, spread so that the farthest meets `target` - 1.

    q is found by bisection on [1.01, 1.5], as far as a width of 1e-6. Source: BEiT run_class_finetuning.py.
    """
    low, high = 1.01, 1.5
    ratio = low
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if sum(ratio**k for k in range(source - 1)) > target - 1:
            high = ratio
        else:
            low = ratio
    distances = np.cumsum(ratio ** np.arange(source - 1))
    return np.concatenate([-distances[::-1], [0.0], distances])
