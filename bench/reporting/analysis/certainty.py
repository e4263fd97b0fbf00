"""Uncertainty of a table: probability of being best, variance components, minimal detectable differences."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nan

import numpy as np
import pandas as pd

from bench.reporting.analysis.comparability import Guard
from bench.reporting.analysis.comparisons import Comparison, Score, compare_arms
from bench.reporting.analysis.outcomes import Outcomes, label_of
from bench.stats import power, variance_components

NORMAL = 1.959964  # half width of a 95 % interval in standard errors


def measures(outcomes: Outcomes, guard: Guard, headline: Sequence[Comparison]) -> list[Comparison]:
    """Comparisons by the other scores that were stored image by image, where at least two arms have them."""
    comparisons = []
    for comparison in headline:
        arms = [score.arm for score in comparison.scores]
        names = dict.fromkeys(name for arm in arms for result in arm.seeds for name in sorted(result.measures))
        for name in names:
            others = [arm for arm in (arm.with_measure(name) for arm in arms) if arm]
            if len(others) > 1:
                comparisons.append(compare_arms(comparison.task, others, outcomes=outcomes, guard=guard, measure=name))
    return comparisons


def stability(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Probability of every ranked arm of being the best; columns task, arm, label, first, rank (by its score)."""
    rows = [
        (comparison.task, score.arm.planned.id, label_of(score.arm.planned), score.probability_best, rank)
        for comparison in comparisons
        for rank, score in enumerate(comparison.ranked, 1)
    ]
    return pd.DataFrame(rows, columns=["task", "arm", "label", "first", "rank"])


def variance(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Variance components of every score, as standard deviations in points of one training's score.

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
    sds = variance_components.component_sds(score.design, score.training_scores)
    return tuple(nan if sd is None else sd for sd in sds)  # type: ignore[return-value]


def _by_images(score: Score) -> float:
    """Standard error of the arm's score over other images, from its 95 % interval."""
    return (score.interval.high - score.interval.low) / (2 * NORMAL)


def detectable(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Minimal detectable difference (80 % power, 5 %) of a study with these seeds and images, from measured variances.

    columns: task, seeds, images, points (methods; NaN for one seed), points_images (these weights), sentence.
    """
    rows = [row for comparison in comparisons if (row := _detectable(comparison))]
    return pd.DataFrame(rows, columns=["task", "seeds", "images", "points", "points_images", "sentence"])


def _detectable(comparison: Comparison) -> tuple[object, ...] | None:
    differences = [difference for difference in comparison.differences if not difference.conflicts]
    if not differences:
        return None
    by_images = float(np.median([_variance(difference.images_interval) for difference in differences]))
    weights = power.minimal_detectable_difference(by_images)
    seeds = min(score.design.pretrainings for score in comparison.scores)
    methods = nan
    if comparison.seed_noise and seeds > 1:
        by_seeds = 2 * comparison.seed_noise.sd**2 / seeds
        methods = power.minimal_detectable_difference(by_images, by_seeds, comparison.seed_noise.df or inf)
    many = f"{comparison.images:,} images"
    sentence = f"{many} tell these weights apart from {weights:.2f} points on"
    if not np.isnan(methods):
        sentence = f"{seeds} seeds and {many} tell methods apart from {methods:.2f} points on, and {sentence}"
    return comparison.task, seeds, comparison.images, methods, weights, f"{sentence} (in 80 of 100 studies, at 5 %)"


def _variance(interval: tuple[float, float]) -> float:
    return ((interval[1] - interval[0]) / (2 * NORMAL)) ** 2
