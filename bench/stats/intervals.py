"""How sure a score is, and a difference between two scores: intervals and tests from scipy, in percent and points.

What other images would change is found by resampling (`resampling`), what training again would change by components
of variance (`components`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import bdtr

LEVEL = 0.95
ALPHA = 1 - LEVEL


class Interval(NamedTuple):
    """Limits of a score or of a difference, in percent."""

    low: float
    high: float


class Spread(NamedTuple):
    """Scores of the same arm trained with several seeds. `sd` is None for a single seed."""

    mean: float
    sd: float | None
    n: int


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
    low, high = min(middle - half, share), max(middle + half, share)  # it holds the score also where it rounds
    return Interval(100 * float(max(low, 0.0)), 100 * float(min(high, 1.0)))


def percentiles(drawn: NDArray[np.floating]) -> Interval:
    """The middle 95 % of bootstrap draws."""
    low, high = np.quantile(drawn, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Interval(float(low), float(high))


def two_sided(drawn: NDArray[np.floating]) -> float:
    """Twice the share of bootstrapped differences beyond zero, on the rarer side; never exactly 0."""
    rarer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return float(min(1.0, 2 * (rarer + 1) / (len(drawn) + 1)))


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Discordant:
    """Exact McNemar test of two models on the same images: a sign test on those that only one gets right.

    Source: McNemar 1947, Psychometrika 12, 153, with the exact binomial in place of chi square.
    """
    return sign_test(int((first & ~second).sum()), int((second & ~first).sum()))


def sign_test(first_only: int, second_only: int) -> Discordant:
    """The exact McNemar test from the numbers of images that only one of two models gets right."""
    total = first_only + second_only
    p = min(1.0, 2 * float(bdtr(min(first_only, second_only), total, 0.5)))
    return Discordant(first_only, second_only, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several, in the order given; not-a-number is no test and stays.

    Source: Holm 1979, Scand. J. Stat. 6, 65.
    """
    tests = [index for index in np.argsort(p_values, kind="stable") if not np.isnan(p_values[index])]
    adjusted, highest = [float("nan")] * len(p_values), 0.0
    for rank, index in enumerate(tests):
        highest = max(highest, min(1.0, (len(tests) - rank) * p_values[index]))
        adjusted[int(index)] = highest
    return adjusted


def student(value: float, deviation: float, freedom: float) -> tuple[Interval, float]:
    """95 % interval around `value` whose standard deviation is known with `freedom` degrees, and p for zero."""
    if deviation == 0:
        return Interval(value, value), 1.0 if value == 0 else 0.0
    half = float(stats.t.ppf(0.5 + LEVEL / 2, freedom)) * deviation
    return Interval(value - half, value + half), float(2 * stats.t.sf(abs(value) / deviation, freedom))


def mean_interval(values: Sequence[float]) -> Interval:
    """Student's 95 % interval of the mean of a few independent values; not-a-number for a single one."""
    if len(values) < 2:
        return Interval(float("nan"), float("nan"))
    deviation = float(np.std(values, ddof=1)) / float(np.sqrt(len(values)))
    return student(float(np.mean(values)), deviation, len(values) - 1)[0]
