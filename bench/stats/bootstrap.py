"""Paired bootstrap over images: scores of all arms on the same resamples of the evaluation images.

Every score here is a mean of ratios: `hits` over `totals`, summed over images, per class. Top-1 accuracy is the case
of one class in which every image counts once; mIoU has intersection and union of every class. So one bootstrap over
images serves both, and differences are paired because all arms are resampled with the same weights.

Letters: S seeds, N images, C classes, B bootstrap replicates, M models (seeds of all arms), K groups of images with
the same answers of all models. Scores are in percent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

REPLICATES = 10_000
WEIGHTS_AT_ONCE = 4_000_000  # resampling weights in memory at a time
LARGE_GROUP = 16  # images: from here on a multinomial count for the group is faster than an index for each image


class Counts(NamedTuple):
    """What each seed of an arm got right on each image: arrays (S, N, C)."""

    hits: NDArray[np.floating]
    totals: NDArray[np.floating]


class ImageGroups(NamedTuple):
    """Values (K, ...) of groups of images and how many images each stands for (K,), the largest groups first."""

    values: NDArray[np.float32]
    sizes: NDArray[np.int64]


def mean_ratio(hits: NDArray[np.floating], totals: NDArray[np.floating]) -> NDArray[np.floating]:
    """Mean over the last axis of hits / totals in percent; a class that does not occur (total 0) is left out."""
    present = totals > 0
    ratios = np.divide(hits, totals, out=np.zeros_like(hits), where=present)
    return 100 * ratios.sum(-1) / np.maximum(present.sum(-1), 1)


def scores(counts: Counts) -> NDArray[np.floating]:
    """The score of every seed over all images (S,)."""
    return mean_ratio(counts.hits.sum(1), counts.totals.sum(1))


def bootstrap(
    arms: Mapping[str, Counts], replicates: int = REPLICATES, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """Bootstrap replicates (S, B) of the score of every seed; replicate b uses the same resample for all arms.

    arms: all on the same N images in the same order. Images with the same answers of all models are resampled as a
    group, which changes the speed and not the distribution. Source: Efron 1979, Annals of Statistics 7, 1.
    """
    images = {counts.hits.shape[1] for counts in arms.values()}
    assert len(images) <= 1, f"arms on different numbers of images: {sorted(images)}"
    if not arms or images == {0}:
        return {name: np.empty((len(counts.hits), 0)) for name, counts in arms.items()}
    if all(_is_right_or_wrong(counts) for counts in arms.values()):
        right = np.concatenate([counts.hits[:, :, 0] for counts in arms.values()])
        resampled = resample_accuracy(group_images(right), replicates, seed)
    else:
        resampled = _resample_ratios(list(arms.values()), replicates, seed)
    ends = np.cumsum([len(counts.hits) for counts in arms.values()])
    return dict(zip(arms, np.split(resampled, ends[:-1]), strict=True))


def _is_right_or_wrong(counts: Counts) -> bool:
    """Whether every image counts once, as right or as wrong."""
    return counts.hits.shape[2] == 1 and bool((counts.totals == 1).all() and np.isin(counts.hits, (0, 1)).all())


def group_images(right: NDArray[np.floating]) -> ImageGroups:
    """Group images with the same right and wrong answers of all models. right: (M, N)."""
    packed = np.packbits(right.T.astype(bool), axis=1)  # (N, ceil(M / 8))
    # one void scalar per image: np.unique sorts these much faster than rows (axis=0)
    keys = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, sizes = np.unique(keys, return_index=True, return_counts=True)
    order = np.lexsort((first, -sizes))  # ties by first image, so that the order does not depend on the packing
    return ImageGroups(right.T[first[order]].astype(np.float32), sizes[order])


def resample_accuracy(groups: ImageGroups, replicates: int, seed: int = 0) -> NDArray[np.float64]:
    """Bootstrap replicates (M, B) of the accuracies, in percent, of M models whose answers are the columns."""
    images = groups.sizes.sum()
    # (b, M) numbers of right images: whole numbers, which float32 holds exactly up to 2**24 images
    parts = [weights @ groups.values for weights in _weights(groups.sizes, replicates, seed)]
    return np.ascontiguousarray((100 / images) * np.concatenate(parts).T.astype(np.float64))


def _resample_ratios(arms: list[Counts], replicates: int, seed: int) -> NDArray[np.float64]:
    """Bootstrap replicates (M, B) of the mean ratios of all seeds of all arms, one after another."""
    images = arms[0].hits.shape[1]
    tables = [tuple(np.ascontiguousarray(table, np.float32) for table in pair)
              for counts in arms for pair in zip(counts.hits, counts.totals, strict=True)]  # fmt: skip
    parts = []
    for weights in _weights(np.ones(images, np.int64), replicates, seed):
        parts.append(np.stack([mean_ratio(weights @ hits, weights @ totals) for hits, totals in tables]))
    return np.concatenate(parts, axis=1).astype(np.float64)


def _weights(sizes: NDArray[np.int64], replicates: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Resampling weights (b, K): how often each group occurs in a resample, in parts that fit in memory.

    `sizes` falls. One multinomial counts the large groups and the rest; the images of the rest are drawn one by one:
    together a multinomial over all groups again.
    """
    generator = np.random.default_rng(seed)
    images, large = int(sizes.sum()), int((sizes >= LARGE_GROUP).sum())
    group_of = np.repeat(np.arange(len(sizes) - large), sizes[large:])
    shares = np.append(sizes[:large], len(group_of)) / images
    at_once = max(1, WEIGHTS_AT_ONCE // len(sizes))
    for start in range(0, replicates, at_once):
        counts = generator.multinomial(images, shares, size=min(at_once, replicates - start))
        weights = np.empty((len(counts), len(sizes)), np.float32)
        weights[:, :large] = counts[:, :large]
        for row, rest in zip(weights[:, large:], counts[:, large], strict=True):
            # max: without small groups the rest is always 0, but integers() refuses an empty range
            indices = generator.integers(0, max(len(group_of), 1), size=rest, dtype=np.uint32)
            row[:] = np.bincount(group_of[indices], minlength=len(row))
        yield weights
