"""Arms that do not differ are called different in 5 % of studies at most, and intervals hold the truth in 95 %.

Images are easy or hard for all arms alike; a training has a skill of its own around its method's; which images of a
difficulty a model gets right is random as well, on its own. Answers are simulated as numbers of images on which the
same models are right, from their probability over the difficulty of images: exact, and fast at 50,000 images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from bench.stats import bootstrap, intervals, power, variance_components
from bench.stats.variance_components import ArmUnits, Design

STUDIES = 150
REPLICATES = {1: 500, 2: 80, 3: 80, 5: 80}  # by seeds: with several only their variance is needed
SKILL, OWN_NOISE = 1.06, 0.5  # about 83 % right; 8 % of the images are answered differently by two like models
NOISE = {500: 0.03, 2000: 0.03, 50_000: 0.004}  # of skill between trainings: as large as what images do, or larger
NODES, SHARES = np.polynomial.hermite_e.hermegauss(31)  # difficulties of images, standard normal


class Simulated(NamedTuple):
    """Two arms of a study, and the skill of every training."""

    arms: list[ArmUnits]
    skills: np.ndarray
    groups: bootstrap.ImageGroups


def simulated(generator: np.random.Generator, images: int, seeds: int, gap: float = 0.0, sd: float = 0.0) -> Simulated:
    """Two methods whose skills are `gap` apart."""
    skills = np.repeat([SKILL, SKILL + gap], seeds) + sd * generator.normal(size=2 * seeds)
    right = ndtr((skills[:, None] - NODES) / OWN_NOISE)  # (models, difficulties)
    answers = (np.arange(2 ** len(skills))[:, None] >> np.arange(len(skills))) & 1
    chance = np.ones((len(answers), len(NODES)))
    for model, p in enumerate(right):
        chance *= np.where(answers[:, model, None], p, 1 - p)
    chances = chance @ SHARES
    counts = generator.multinomial(images, chances / chances.sum())
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    groups = bootstrap.ImageGroups(answers[order].astype(np.float32), counts[order])
    replicates = bootstrap.resample_accuracy(groups, REPLICATES[seeds], seed=int(generator.integers(2**31)))
    scores = 100 * (groups.sizes @ groups.values) / images
    arms = [
        variance_components.arm_units(
            Design(tuple(f"{arm} {seed}" for seed in range(seeds))), scores[part], replicates[part]
        )
        for arm, part in enumerate((slice(None, seeds), slice(seeds, None)))
    ]
    return Simulated(arms, skills, groups)


def accuracy(skill: float, sd: float = 0.0) -> float:
    """The true accuracy in percent of a model, or of a method over its trainings."""
    return 100 * float(ndtr(skill / np.sqrt(1 + OWN_NOISE**2 + sd**2)))


def most(share: float, studies: int = STUDIES) -> int:
    """More studies than this would contradict a true share of `share` at one in a thousand."""
    return int(stats.binom.ppf(0.999, studies, share))


@pytest.mark.parametrize("images", [500, 2000, 50_000])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_methods_that_do_not_differ_are_told_apart_in_five_percent_of_studies_at_most(images: int, seeds: int) -> None:
    generator = np.random.default_rng([images, seeds])
    different = missed = score_missed = 0
    for _ in range(STUDIES):
        first, second = simulated(generator, images, seeds, sd=NOISE[images]).arms
        shared = variance_components.pooled_variance([first, second])
        estimate = variance_components.estimate_difference(first, second, shared)
        alone = variance_components.estimate_score(first, shared)
        assert estimate is not None
        assert alone is not None
        interval, p = intervals.t_interval(estimate.value, estimate.standard_error, estimate.df)
        different += p <= intervals.ALPHA
        missed += not interval.low <= 0 <= interval.high
        low, high = intervals.t_interval(alone.value, alone.standard_error, alone.df)[0]
        score_missed += not low <= accuracy(SKILL, NOISE[images]) <= high
    assert different <= most(0.05)
    assert missed <= most(0.05)
    assert score_missed <= most(0.05)


@pytest.mark.parametrize("images", [500, 2000, 50_000])
def test_intervals_of_weights_that_were_trained_once_hold_their_true_difference(images: int) -> None:
    generator = np.random.default_rng(images)
    missed = different = score_missed = 0
    for _ in range(STUDIES):
        study = simulated(generator, images, 1)
        low, high = intervals.percentile_interval(study.arms[0].replicates[0] - study.arms[1].replicates[0])
        missed += not low <= 0 <= high
        different += exact(study.groups) <= intervals.ALPHA
        interval = intervals.wilson(study.arms[0].mean, images)
        score_missed += not interval.low <= accuracy(SKILL) <= interval.high
    assert different <= most(0.05)
    assert missed <= most(0.06)  # 500 replicates know the outermost 2.5 % only roughly
    assert score_missed <= most(0.05)


def exact(groups: bootstrap.ImageGroups) -> float:
    """McNemar's p of two models."""
    only = [int(groups.sizes[(groups.values[:, a] > groups.values[:, 1 - a])].sum()) for a in (0, 1)]
    return intervals.sign_test(*only).p


@pytest.mark.parametrize(("images", "seeds"), [(2000, 1), (2000, 3), (50_000, 5)])
def test_a_difference_of_the_detectable_size_is_found_in_eighty_percent_of_studies(images: int, seeds: int) -> None:
    generator = np.random.default_rng([images, seeds, 1])
    sd = NOISE[images] if seeds > 1 else 0.0
    slope = (accuracy(SKILL + 0.01) - accuracy(SKILL)) / 0.01  # points per skill
    by_images = 100**2 * discordant() / images
    # with each seed's own noise averaged out, fewer images separate two means than two models
    df = 2 * (seeds - 1) or np.inf
    size = power.minimal_detectable_difference(by_images / seeds, 2 * (slope * sd) ** 2 / seeds, df)
    detections = 0
    for _ in range(STUDIES):
        study = simulated(generator, images, seeds, gap=size / slope, sd=sd)
        if seeds == 1:
            detections += exact(study.groups) <= intervals.ALPHA
        else:
            shared = variance_components.pooled_variance(study.arms)
            estimate = variance_components.estimate_difference(*study.arms, shared)
            assert estimate is not None
            _, p = intervals.t_interval(estimate.value, estimate.standard_error, estimate.df)
            detections += p <= intervals.ALPHA
    assert 0.66 <= detections / STUDIES <= 0.91  # three standard errors of 150 studies


def discordant() -> float:
    """Share of images that one of two models of the same skill gets right and the other wrong."""
    right = ndtr((SKILL - NODES) / OWN_NOISE)
    return float(2 * (right * (1 - right)) @ SHARES / SHARES.sum())


def test_a_wild_arm_does_not_make_a_steady_one_different() -> None:
    generator = np.random.default_rng(3)
    different = 0
    for _ in range(STUDIES):
        first, second = (simulated(generator, 2000, 3, sd=sd).arms[arm] for arm, sd in ((0, 0.01), (1, 0.06)))
        shared = variance_components.pooled_variance([first, second])
        estimate = variance_components.estimate_difference(first, second, shared)
        assert estimate is not None
        different += intervals.t_interval(estimate.value, estimate.standard_error, estimate.df)[1] <= intervals.ALPHA
    assert different <= most(0.06)
