"""What other images would change: scores of all arms on images drawn again, with the same draw for every arm.

Every score here is a mean of ratios: `hits` over `totals`, summed over images, per class. Top-1 accuracy is the case
of one class in which every image counts once; mIoU has intersection and union of every class. So one bootstrap over
images serves both, and differences are paired because all arms are resampled with the same weights.

Letters: S seeds, N images, C classes, D bootstrap draws, K rows: images, or groups of images on which all models do
alike. Scores are in percent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
WEIGHTS_AT_ONCE = 4_000_000  # numbers held in memory at a time
OFTEN = 16  # images alike from which on it is faster to draw how many of them come than to draw each


class Counts(NamedTuple):
    """What each seed of an arm got right on each image: arrays (S, N, C)."""

    hits: NDArray[np.floating]
    totals: NDArray[np.floating]


class Rows(NamedTuple):
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


def bootstrap(arms: Mapping[str, Counts], draws: int = DRAWS, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Scores (S, D) of every seed of every arm on images drawn with replacement; draw d is the same for all.

    arms: all on the same N images in the same order. Images on which all models do alike are drawn together, which
    changes the speed and not the distribution. Source: Efron 1979, Annals of Statistics 7, 1.
    """
    images = {counts.hits.shape[1] for counts in arms.values()}
    assert len(images) <= 1, f"arms on different numbers of images: {sorted(images)}"
    if not arms or images == {0}:
        return {name: np.empty((len(counts.hits), 0)) for name, counts in arms.items()}
    if all(_is_right_or_wrong(counts) for counts in arms.values()):
        drawn = resampled(alike(np.concatenate([counts.hits[:, :, 0] for counts in arms.values()])), draws, seed)
    else:
        drawn = _ratios(list(arms.values()), draws, seed)
    ends = np.cumsum([len(counts.hits) for counts in arms.values()])
    return dict(zip(arms, np.split(drawn, ends[:-1]), strict=True))


def _is_right_or_wrong(counts: Counts) -> bool:
    """Whether every image counts once, as right or as wrong."""
    return counts.hits.shape[2] == 1 and bool((counts.totals == 1).all() and np.isin(counts.hits, (0, 1)).all())


def alike(right: NDArray[np.floating]) -> Rows:
    """Right and wrong answers (M, N) of M models as rows; images with the same answers of all models make one row."""
    packed = np.packbits(right.T.astype(bool), axis=1)  # (N, ceil(M / 8))
    keys = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, sizes = np.unique(keys, return_index=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    return Rows(right.T[first[order]].astype(np.float32), sizes[order])


def resampled(rows: Rows, draws: int, seed: int = 0) -> NDArray[np.float64]:
    """Accuracies (M, D) in percent of M models whose answers are the columns of `rows`."""
    images = rows.sizes.sum()
    parts = [weights @ rows.values for weights in _weights(rows.sizes, draws, seed)]  # (d, M), whole numbers
    return np.ascontiguousarray((100 / images) * np.concatenate(parts).T.astype(np.float64))


def _ratios(arms: list[Counts], draws: int, seed: int) -> NDArray[np.float64]:
    """Scores (M, D) of all seeds of all arms, one after another."""
    images = arms[0].hits.shape[1]
    tables = [tuple(np.ascontiguousarray(table, np.float32) for table in pair)
              for counts in arms for pair in zip(counts.hits, counts.totals, strict=True)]  # fmt: skip
    parts = []
    for weights in _weights(np.ones(images, np.int64), draws, seed):
        parts.append(np.stack([mean_ratio(weights @ hits, weights @ totals) for hits, totals in tables]))
    return np.concatenate(parts, axis=1).astype(np.float64)


def _weights(sizes: NDArray[np.int64], draws: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """How often each row is drawn (d, K), in parts that fit in memory. `sizes` falls.

    Large groups are drawn by one multinomial, the images of small ones one by one: together a multinomial again.
    """
    generator = np.random.default_rng(seed)
    images, often = int(sizes.sum()), int((sizes >= OFTEN).sum())
    row_of = np.repeat(np.arange(len(sizes) - often), sizes[often:])
    shares = np.append(sizes[:often], len(row_of)) / images
    at_once = max(1, WEIGHTS_AT_ONCE // len(sizes))
    for start in range(0, draws, at_once):
        counts = generator.multinomial(images, shares, size=min(at_once, draws - start))
        weights = np.empty((len(counts), len(sizes)), np.float32)
        weights[:, :often] = counts[:, :often]
        for into, rest in zip(weights[:, often:], counts[:, often], strict=True):
            drawn = generator.integers(0, max(len(row_of), 1), size=rest, dtype=np.uint32)
            into[:] = np.bincount(row_of[drawn], minlength=len(into))
        yield weights
