"""Confidence intervals and tests of scores and of paired differences, from scipy, in percent and points.

The variance over images comes from the bootstrap (`bootstrap`), the variance between seeds from `variance_components`.
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
    """Confidence limits of a score or of a difference, in percent."""

    low: float
    high: float


class Spread(NamedTuple):
    """Scores of the same arm trained with several seeds. `sd` is None for a single seed."""

    mean: float
    sd: float | None
    n: int


class Discordant(NamedTuple):
    """Discordant images, which only one of two models gets right, and McNemar's exact p for their split.

    The fields are the keys of report.json.
    """

    first_only: int
    second_only: int
    p: float


def spread(scores: Sequence[float]) -> Spread:
    """Mean and sample standard deviation over seeds."""
    sd = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    return Spread(float(np.mean(scores)), sd, len(scores))


def wilson(score: float, images: int) -> Interval:
    """Wilson interval of an accuracy measured on `images` images.

    score: percent; may be a mean over seeds, for which the interval is a little too wide, never too narrow.
    Source: Wilson 1927, JASA 22, 209.
    """
    z = float(stats.norm.ppf(0.5 + LEVEL / 2))
    share, shrink = score / 100, 1 + z * z / images
    middle = (share + z * z / (2 * images)) / shrink
    half = z / shrink * np.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    low, high = min(middle - half, share), max(middle + half, share)  # at 0 and 100 % rounding could exclude the score
    return Interval(100 * float(max(low, 0.0)), 100 * float(min(high, 1.0)))


def percentile_interval(replicates: NDArray[np.floating]) -> Interval:
    """Percentile interval: the middle 95 % of bootstrap replicates (B,)."""
    low, high = np.quantile(replicates, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Interval(float(low), float(high))


def bootstrap_p(replicates: NDArray[np.floating]) -> float:
    """Two-sided p of a difference from its bootstrap replicates (B,): twice the share beyond zero, on the rarer side.

    Never exactly 0: the observed difference counts as one more replicate.
    """
    rarer = min(int((replicates <= 0).sum()), int((replicates >= 0).sum()))
    return float(min(1.0, 2 * (rarer + 1) / (len(replicates) + 1)))


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Discordant:
    """Exact McNemar test of two models on the same images: a sign test on those that only one gets right.

    Source: McNemar 1947, Psychometrika 12, 153, with the exact binomial in place of chi square.
    """
    return sign_test(int((first & ~second).sum()), int((second & ~first).sum()))


def sign_test(first_only: int, second_only: int) -> Discordant:
    """The exact McNemar test from the numbers of images that only one of two models gets right."""
    total = first_only + second_only
    # bdtr is the binomial distribution function; calling it directly avoids most of the overhead of stats.binomtest
    p = min(1.0, 2 * float(bdtr(min(first_only, second_only), total, 0.5)))
    return Discordant(first_only, second_only, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's step-down procedure, in the order given; not-a-number is no test and stays.

    Source: Holm 1979, Scand. J. Stat. 6, 65.
    """
    tests = [index for index in np.argsort(p_values, kind="stable") if not np.isnan(p_values[index])]
    adjusted, highest = [float("nan")] * len(p_values), 0.0
    for rank, index in enumerate(tests):
        highest = max(highest, min(1.0, (len(tests) - rank) * p_values[index]))  # an adjusted p never falls
        adjusted[int(index)] = highest
    return adjusted


def t_interval(value: float, standard_error: float, df: float) -> tuple[Interval, float]:
    """Student's 95 % interval around `value`, and the two-sided p of zero. df: degrees of freedom, may be infinite."""
    if standard_error == 0:  # t would be 0 / 0 or infinite
        return Interval(value, value), 1.0 if value == 0 else 0.0
    half = float(stats.t.ppf(0.5 + LEVEL / 2, df)) * standard_error
    return Interval(value - half, value + half), float(2 * stats.t.sf(abs(value) / standard_error, df))


def mean_interval(values: Sequence[float]) -> Interval:
    """Student's 95 % interval of the mean of a few independent values; not-a-number for a single one."""
    if len(values) < 2:
        return Interval(float("nan"), float("nan"))
    standard_error = float(np.std(values, ddof=1)) / float(np.sqrt(len(values)))
    return t_interval(float(np.mean(values)), standard_error, len(values) - 1)[0]
