"""Arms against each other on one task: which differences are more than the luck of images and of training.

Two questions are asked of a difference, and both must be answered for it to count. Would these trained models differ
on other images of the same kind? (paired bootstrap over images, Holm over all pairs of the task.) Would the methods
differ if they were trained again? (least significant difference from the spread over seeds, where there are seeds.)
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from bench.compare import statistics
from bench.compare.outcomes import Arm
from bench.compare.statistics import Discordant, Interval, Retraining, Spread

ALPHA = 1 - statistics.LEVEL
EQUAL = 1e-9  # points; means of the same counts differ by less
Verdict = Literal["different", "different weights", "images", "retraining"]
MEANING: dict[Verdict, str] = {
    "different": "different: more than the luck of images and of retraining",
    "different weights": "different on other images too; retraining was not repeated",
    "images": "not distinguishable: other images could turn it round",
    "retraining": "not distinguishable: training again could turn it round",
}


class Score(NamedTuple):
    """An arm on its task, in percent. `interval` speaks of other images, `spread` of other seeds."""

    arm: Arm
    spread: Spread
    interval: Interval


class Difference(NamedTuple):
    """`first` minus `second`, in points."""

    first: str
    second: str
    value: float
    interval: Interval
    p: float
    p_adjusted: float
    by_retraining: float | None  # differences up to here are within the noise of retraining
    by_seed: dict[int, Discordant]  # exact McNemar of the models with the same seed; top-1 only
    verdict: Verdict

    @property
    def told_apart(self) -> bool:
        """Whether the two arms differ by more than chance explains."""
        return self.verdict.startswith("different")


class Comparison(NamedTuple):
    """All that can be said about the arms of one task. `scores` follow the plan, without arms that have no score."""

    task: str
    metric: str
    images: int
    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]  # every pair once, both in the order of the plan
    noise: Retraining | None

    @property
    def ranked(self) -> list[Score]:
        """Highest mean first; equal means in the order of the plan."""
        return sorted(self.scores, key=lambda score: -score.spread.mean)

    def between(self, first: str, second: str) -> Difference:
        """The difference of two arms in this order."""
        for found in self.differences:
            if (found.first, found.second) == (first, second):
                return found
            if (found.first, found.second) == (second, first):
                return _turned(found)
        raise KeyError((first, second))

    def highest(self) -> list[str]:
        """Ids of the arms with the highest mean: several when they are equal."""
        return [s.arm.planned.id for s in self.ranked if s.spread.mean >= self.ranked[0].spread.mean - EQUAL]

    def like_best(self) -> list[str]:
        """Ids of the best arm and of those that cannot be told apart from it."""
        if not self.scores:
            return []
        best, *others = [score.arm.planned.id for score in self.ranked]
        return [best, *(other for other in others if not self.between(best, other).told_apart)]


def compare_arms(task: str, arms: list[Arm], draws: int = statistics.DRAWS) -> Comparison:
    """Scores and differences of the arms of one task that have at least one finished seed."""
    scored = [arm for arm in arms if arm.seeds]
    metric = arms[0].planned.metric
    counts = {arm.planned.id: arm.counts() for arm in scored}
    drawn = statistics.bootstrap(counts, draws)
    spreads = {arm.planned.id: statistics.spread(statistics.scores(counts[arm.planned.id]).tolist()) for arm in scored}
    noise = statistics.retraining(list(spreads.values()))
    images = len(scored[0].seeds[0].ids) if scored else 0
    scores = tuple(
        Score(arm, spreads[arm.planned.id], _interval(metric, spreads[arm.planned.id], drawn[arm.planned.id], images))
        for arm in scored
    )
    return Comparison(task, metric, images, scores, _differences(scores, drawn, noise), noise)


def _interval(metric: str, spread: Spread, drawn: np.ndarray, images: int) -> Interval:
    return statistics.wilson(spread.mean, images) if metric == "top1" else statistics.percentiles(drawn)


def _differences(
    scores: tuple[Score, ...], drawn: dict[str, np.ndarray], noise: Retraining | None
) -> tuple[Difference, ...]:
    pairs = [(a, b) for i, a in enumerate(scores) for b in scores[i + 1 :]]
    drawn_pairs = [drawn[a.arm.planned.id] - drawn[b.arm.planned.id] for a, b in pairs]
    p_values = [statistics.two_sided(draws) for draws in drawn_pairs]
    adjusted = statistics.holm(p_values)
    return tuple(
        _difference(a, b, draws, p, p_adjusted, noise)
        for (a, b), draws, p, p_adjusted in zip(pairs, drawn_pairs, p_values, adjusted, strict=True)
    )


def _difference(
    first: Score, second: Score, drawn: np.ndarray, p: float, p_adjusted: float, noise: Retraining | None
) -> Difference:
    value = first.spread.mean - second.spread.mean
    by_retraining = statistics.smallest_difference(noise, first.spread.n, second.spread.n) if noise else None
    return Difference(
        first.arm.planned.id, second.arm.planned.id, value, statistics.percentiles(drawn), p, p_adjusted,
        by_retraining, _mcnemar_by_seed(first.arm, second.arm), _verdict(value, p_adjusted, by_retraining),
    )  # fmt: skip


def _verdict(value: float, p_adjusted: float, by_retraining: float | None) -> Verdict:
    if p_adjusted > ALPHA:
        return "images"
    if by_retraining is None:
        return "different weights"
    return "different" if abs(value) > by_retraining else "retraining"


def _mcnemar_by_seed(first: Arm, second: Arm) -> dict[int, Discordant]:
    if first.planned.metric != "top1":
        return {}
    others = {outcome.seed: outcome for outcome in second.seeds}
    return {
        one.seed: statistics.mcnemar(one.hits[:, 0] > 0, others[one.seed].hits[:, 0] > 0)
        for one in first.seeds
        if one.seed in others
    }


def _turned(found: Difference) -> Difference:
    by_seed = {seed: Discordant(d.second_only, d.first_only, d.p) for seed, d in found.by_seed.items()}
    low, high = found.interval
    return found._replace(
        first=found.second, second=found.first, value=-found.value, interval=Interval(-high, -low), by_seed=by_seed
    )
