"""How far a table can be trusted: who is first how surely, where the spread comes from, what could have been seen."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nan

import numpy as np
import pandas as pd

from bench.reporting.analysis.comparability import Guard
from bench.reporting.analysis.comparisons import Comparison, Score, compare_arms
from bench.reporting.analysis.outcomes import Outcomes, label_of
from bench.stats import power, variance_components


def measures(outcomes: Outcomes, guard: Guard, headline: Sequence[Comparison]) -> list[Comparison]:
    """Comparisons by the other scores that were stored image by image, where at least two arms have them."""
    found = []
    for comparison in headline:
        arms = [score.arm for score in comparison.scores]
        for name in dict.fromkeys(name for arm in arms for one in arm.seeds for name in sorted(one.measures)):
            having = [arm for arm in (arm.measured(name) for arm in arms) if arm]
            if len(having) > 1:
                found.append(compare_arms(comparison.task, having, outcomes=outcomes, guard=guard, measure=name))
    return found


def stability(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Probability of every ranked arm of being first; columns task, arm, label, first, rank (by its score)."""
    rows = [
        (comparison.task, score.arm.planned.id, label_of(score.arm.planned), score.first, rank)
        for comparison in comparisons
        for rank, score in enumerate(comparison.ranked, 1)
    ]
    return pd.DataFrame(rows, columns=["task", "arm", "label", "first", "rank"])


def variance(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Where the uncertainty of every score comes from, as standard deviations in points of one training's score.

    columns: task, arm, label, pretrainings, trainings, sd_pretraining, sd_finetuning, sd_images, sentence.
    """
    rows = [
        (comparison.task, score.arm.planned.id, label_of(score.arm.planned), score.design.pretrainings,
         score.design.trainings, *_spread(score), _by_images(score), score.design.sentence)
        for comparison in comparisons
        for score in comparison.scores
    ]  # fmt: skip
    columns = ["task", "arm", "label", "pretrainings", "trainings", "sd_pretraining", "sd_finetuning", "sd_images"]
    return pd.DataFrame(rows, columns=[*columns, "sentence"])


def _spread(score: Score) -> tuple[float, float]:
    found = variance_components.budget(score.design, score.by_training)
    return tuple(nan if part is None else part for part in found)  # type: ignore[return-value]


def _by_images(score: Score) -> float:
    """Standard deviation of the arm's score over other images, from its 95 % interval."""
    return (score.interval.high - score.interval.low) / (2 * 1.959964)


def detectable(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """The smallest difference that a study like this one tells apart in 80 of 100 cases, from what was measured.

    columns: task, seeds, images, points (methods; NaN for one seed), points_images (these weights), sentence.
    """
    rows = [row for comparison in comparisons if (row := _detectable(comparison))]
    return pd.DataFrame(rows, columns=["task", "seeds", "images", "points", "points_images", "sentence"])


def _detectable(comparison: Comparison) -> tuple[object, ...] | None:
    compared = [found for found in comparison.differences if not found.conflicts]
    if not compared:
        return None
    by_images = float(np.median([_variance(found.images_interval) for found in compared]))
    weights = power.smallest_difference(by_images)
    seeds = min(score.design.pretrainings for score in comparison.scores)
    methods = nan
    if comparison.noise and seeds > 1:
        by_seeds = 2 * comparison.noise.sd**2 / seeds
        methods = power.smallest_difference(by_images, by_seeds, comparison.noise.freedom or inf)
    many = f"{comparison.images:,} images"
    sentence = f"{many} tell these weights apart from {weights:.2f} points on"
    if not np.isnan(methods):
        sentence = f"{seeds} seeds and {many} tell methods apart from {methods:.2f} points on, and {sentence}"
    return comparison.task, seeds, comparison.images, methods, weights, f"{sentence} (in 80 of 100 studies, at 5 %)"


def _variance(interval: tuple[float, float]) -> float:
    return ((interval[1] - interval[0]) / (2 * 1.959964)) ** 2
