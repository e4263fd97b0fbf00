"""How sure a score is, and a difference between two scores.

Every score here is a mean of ratios: `hits` over `totals`, summed over images, per class. Top-1 accuracy is the
case of one class in which every image counts once; mIoU has intersection and union of every class. So one bootstrap
over images serves both, and differences are paired because all arms are resampled with the same weights.

Letters: S seeds, N images, C classes, D bootstrap draws. Scores are in percent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
DRAWS = 10_000
WEIGHTS_AT_ONCE = 4_000_000  # resampling weights held in memory at a time


class Interval(NamedTuple):
    """Limits of a score or of a difference, in percent."""

    low: float
    high: float


class Spread(NamedTuple):
    """Scores of the same arm trained with several seeds. `sd` is None for a single seed."""

    mean: float
    sd: float | None
    n: int


class Counts(NamedTuple):
    """What each seed of an arm got right on each image: arrays (S, N, C)."""

    hits: NDArray[np.float64]
    totals: NDArray[np.float64]


class Discordant(NamedTuple):
    """Images that only one of two models gets right, and how likely so uneven a split is by chance."""

    first_only: int
    second_only: int
    p: float


def spread(scores: Sequence[float]) -> Spread:
    """Mean and sample standard deviation over seeds."""
    sd = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    return Spread(float(np.mean(scores)), sd, len(scores))


def wilson(score: float, images: int) -> Interval:
    """Wilson's interval of an accuracy measured on `images` images.

    score: percent; may be a mean over seeds, for which the interval is a little too wide, never too narrow.
    Source: Wilson 1927, JASA 22, 209.
    """
    z = float(stats.norm.ppf(0.5 + LEVEL / 2))
    share, shrink = score / 100, 1 + z * z / images
    middle = (share + z * z / (2 * images)) / shrink
    half = z / shrink * np.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    return Interval(100 * float(max(middle - half, 0.0)), 100 * float(min(middle + half, 1.0)))


def mean_ratio(hits: NDArray[np.float64], totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of hits / totals in percent; a class that does not occur (total 0) is left out."""
    present = totals > 0
    ratios = np.divide(hits, totals, out=np.zeros_like(hits), where=present)
    return 100 * ratios.sum(-1) / np.maximum(present.sum(-1), 1)


def scores(counts: Counts) -> NDArray[np.float64]:
    """The score of every seed over all images (S,)."""
    return mean_ratio(counts.hits.sum(1), counts.totals.sum(1))


def bootstrap(arms: Mapping[str, Counts], draws: int = DRAWS, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Scores (D,), mean over seeds, of every arm on images drawn with replacement; draw d is the same for all arms.

    arms: all on the same N images in the same order.
    Source: Efron 1979, Annals of Statistics 7, 1; pairs are kept together.
    """
    images = {counts.hits.shape[1] for counts in arms.values()}
    assert len(images) <= 1, f"arms on different numbers of images: {sorted(images)}"
    parts: dict[str, list[NDArray[np.float64]]] = {name: [] for name in arms}
    for weights in _weights(images.pop() if images else 0, draws, seed):
        for name, counts in arms.items():
            parts[name].append(_resampled(counts, weights))
    return {name: np.concatenate(drawn) for name, drawn in parts.items()}


def _weights(images: int, draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each image is drawn (d, N), in parts that fit in memory."""
    generator = np.random.default_rng(seed)
    at_once = max(1, WEIGHTS_AT_ONCE // max(images, 1))
    for start in range(0, draws if images else 0, at_once):
        rows = min(at_once, draws - start)
        drawn = generator.integers(0, images, size=(rows, images)) + images * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float64)


def _resampled(counts: Counts, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over seeds of the score under image weights (d, N) -> (d,)."""
    seeds = [
        mean_ratio(weights @ hits, weights @ totals) for hits, totals in zip(counts.hits, counts.totals, strict=True)
    ]
    return np.mean(seeds, axis=0)


def percentiles(drawn: NDArray[np.float64]) -> Interval:
    """The middle 95 % of bootstrap draws."""
    low, high = np.quantile(drawn, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Interval(float(low), float(high))


def two_sided(drawn: NDArray[np.float64]) -> float:
    """Twice the share of bootstrapped differences beyond zero, on the rarer side; never exactly 0."""
    rarer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return float(min(1.0, 2 * (rarer + 1) / (len(drawn) + 1)))


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Discordant:
    """Exact McNemar test of two models on the same images: a sign test on those that only one gets right.

    Source: McNemar 1947, Psychometrika 12, 153, with the exact binomial in place of chi square.
    """
    first_only = int((first & ~second).sum())
    second_only = int((second & ~first).sum())
    total = first_only + second_only
    p = float(stats.binomtest(first_only, total).pvalue) if total else 1.0
    return Discordant(first_only, second_only, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several, in the order given. Source: Holm 1979, Scand. J. Stat. 6, 65."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[int(index)] = highest
    return adjusted


class Retraining(NamedTuple):
    """Spread between trainings that differ only in their seed, pooled over arms."""

    sd: float
    freedom: int  # degrees of freedom of `sd`


def retraining(spreads: Sequence[Spread]) -> Retraining | None:
    """Pooled standard deviation over seeds; None when no arm has two seeds."""
    several = [(s.sd, s.n - 1) for s in spreads if s.sd is not None]
    freedom = sum(n for _, n in several)
    if not freedom:
        return None
    return Retraining(float(np.sqrt(sum(sd * sd * n for sd, n in several) / freedom)), freedom)


def smallest_difference(noise: Retraining, first: int, second: int) -> float:
    """Difference of two means over `first` and `second` seeds that retraining alone exceeds in 5 % of studies.

    Student's t with the pooled deviation ("least significant difference").
    """
    t = float(stats.t.ppf(0.5 + LEVEL / 2, noise.freedom))
    return t * noise.sd * float(np.sqrt(1 / first + 1 / second))
