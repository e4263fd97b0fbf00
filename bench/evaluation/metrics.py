"""Metrics: sums per image first, one division at the end. All scores are percentages.

Letters: B images, K classes, H x W pixels of a label map.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.errors import BenchError

Counts = np.ndarray


def top_classes(logits: Tensor, k: int) -> Tensor:
    """The k highest classes of each image, best first: (B, K) -> (B, min(k, K)) int64."""
    return logits.topk(min(k, logits.shape[1]), dim=1).indices


def accuracy(top: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of images whose label is among their k best classes, in percent.

    top: (n, at least k, or all classes) best first; labels: (n,), or (n, L) where any of L is right.
    """
    return 100.0 * float(hits(top[:, :k], labels).mean())


def hits(top: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether a label of each image is among its classes (n, k): (n,) bool. labels: (n,), or (n, L), -1 for none."""
    sets = labels if labels.ndim == 2 else labels[:, None]
    return (top[:, :, None] == sets[:, None, :]).any(axis=(1, 2))


@dataclass(frozen=True, slots=True)
class Areas:
    """Pixels of each class, (K,) int64 each; pixels without a label are left out, also of `predicted`."""

    intersect: Counts
    predicted: Counts
    labelled: Counts

    @property
    def union(self) -> Counts:
        """Pixels that are of a class by the prediction or by the label."""
        return self.predicted + self.labelled - self.intersect


def areas(prediction: Tensor, labels: Tensor, classes: int, ignore_label: int) -> Areas:
    """Overlap of one predicted map with the label map, both (H, W), by one histogram of (label, prediction) pairs.

    prediction: uint8 or wider, below K. labels: uint8, below K or `ignore_label`; BenchError names any other.
    """
    # All 256 labels have a row, ignored ones as well: 6 times faster than leaving pixels out by a boolean mask.
    pairs = labels.to(torch.int32).flatten() * classes + prediction.to(torch.int32).flatten()
    table = torch.bincount(pairs, minlength=256 * classes).view(256, classes)
    pixels = table.sum(1)  # of each label
    pixels[ignore_label] = 0
    wrong = pixels[classes:].nonzero()
    if len(wrong):
        raise BenchError(
            f"the label map has the value {int(wrong[0]) + classes}; "
            f"there are {classes} classes (0 to {classes - 1}), and {ignore_label} is ignored"
        )
    table = table.clone()
    table[ignore_label] = 0
    table = table[:classes].cpu()
    return Areas(table.diagonal().numpy(), table.sum(0).numpy(), table.sum(1).numpy())


class Overlap(NamedTuple):
    """Scores of a whole split, in percent; per class, NaN where a class was never seen."""

    mIoU: float
    mAcc: float
    aAcc: float
    iou: np.ndarray  # (K,)
    accuracy: np.ndarray  # (K,)


def overlap(total: Areas) -> Overlap:
    """Segmentation scores from areas summed over all images of a split.

    mIoU: mean over classes of intersect / union; mAcc: of intersect / labelled; aAcc: share of all labelled pixels.
    A class that is neither predicted nor labelled is left out of the means; one that is predicted but never
    labelled has an IoU of 0. Source: mmsegmentation 0.11, core/evaluation/metrics.py (golden g09).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = 100.0 * total.intersect / total.union
        right = 100.0 * total.intersect / total.labelled
        everywhere = 100.0 * total.intersect.sum() / total.labelled.sum()
    return Overlap(_mean(iou), _mean(right), float(everywhere), iou, right)


def _mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN when there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def total(parts: list[Areas]) -> Areas:
    """Areas of many images added up."""
    return Areas(*(np.sum([getattr(part, field.name) for part in parts], axis=0) for field in fields(Areas)))
