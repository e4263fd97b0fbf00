"""Arms that do not differ are called different in 5 % of studies at most, and intervals hold the truth in 95 %.

Images are easy or hard for all arms alike; a training has a skill of its own around its method's; which images of a
kind a model gets right is its own luck as well. Answers are drawn as numbers of images on which the same models are
right, from their probability over the difficulty of images: exact, and fast at 50,000 images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from bench.stats import bootstrap, intervals, power, variance_components
from bench.stats.variance_components import Design, Trained

STUDIES = 150
DRAWS = {1: 500, 2: 80, 3: 80, 5: 80}  # by seeds: with several only their variance is needed
SKILL, OWN_LUCK = 1.06, 0.5  # about 83 % right; 8 % of the images are answered differently by two like models
NOISE = {500: 0.03, 2000: 0.03, 50_000: 0.004}  # of skill between trainings: as large as what images do, or larger
NODES, SHARES = np.polynomial.hermite_e.hermegauss(31)  # difficulties of images, standard normal


class Simulated(NamedTuple):
    """Two arms of a study, and the skill of every training."""

    arms: list[Trained]
    skills: np.ndarray
    rows: bootstrap.Rows


def simulated(generator: np.random.Generator, images: int, seeds: int, gap: float = 0.0, sd: float = 0.0) -> Simulated:
    """Two methods whose skills are `gap` apart."""
    skills = np.repeat([SKILL, SKILL + gap], seeds) + sd * generator.normal(size=2 * seeds)
    right = ndtr((skills[:, None] - NODES) / OWN_LUCK)  # (models, difficulties)
    answers = (np.arange(2 ** len(skills))[:, None] >> np.arange(len(skills))) & 1
    chance = np.ones((len(answers), len(NODES)))
    for model, p in enumerate(right):
        chance *= np.where(answers[:, model, None], p, 1 - p)
    chances = chance @ SHARES
    counts = generator.multinomial(images, chances / chances.sum())
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    rows = bootstrap.Rows(answers[order].astype(np.float32), counts[order])
    drawn = bootstrap.resampled(rows, DRAWS[seeds], seed=int(generator.integers(2**31)))
    scores = 100 * (rows.sizes @ rows.values) / images
    arms = [
        variance_components.trained(Design(tuple(f"{arm} {seed}" for seed in range(seeds))), scores[part], drawn[part])
        for arm, part in enumerate((slice(None, seeds), slice(seeds, None)))
    ]
    return Simulated(arms, skills, rows)


def accuracy(skill: float, sd: float = 0.0) -> float:
    """The true accuracy in percent of a model, or of a method over its trainings."""
    return 100 * float(ndtr(skill / np.sqrt(1 + OWN_LUCK**2 + sd**2)))


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
        shared = variance_components.pooled([first, second])
        found = variance_components.of_difference(first, second, shared)
        alone = variance_components.of_score(first, shared)
        assert found is not None
        assert alone is not None
        interval, p = intervals.student(*found)
        different += p <= intervals.ALPHA
        missed += not interval.low <= 0 <= interval.high
        low, high = intervals.student(*alone)[0]
        score_missed += not low <= accuracy(SKILL, NOISE[images]) <= high
    assert different <= most(0.05)
    assert missed <= most(0.05)
    assert score_missed <= most(0.05)


@pytest.mark.parametrize("images", [500, 2000, 50_000])
def test_intervals_of_weights_that_were_trained_once_hold_their_true_difference(images: int) -> None:
    generator = np.random.default_rng(images)
    missed = different = score_missed = 0
    for _ in range(STUDIES):
        found = simulated(generator, images, 1)
        low, high = intervals.percentiles(found.arms[0].drawn[0] - found.arms[1].drawn[0])
        missed += not low <= 0 <= high
        different += exact(found.rows) <= intervals.ALPHA
        interval = intervals.wilson(found.arms[0].mean, images)
        score_missed += not interval.low <= accuracy(SKILL) <= interval.high
    assert different <= most(0.05)
    assert missed <= most(0.06)  # 500 draws know the outermost 2.5 % only roughly
    assert score_missed <= most(0.05)


def exact(rows: bootstrap.Rows) -> float:
    """McNemar's p of two models."""
    only = [int(rows.sizes[(rows.values[:, a] > rows.values[:, 1 - a])].sum()) for a in (0, 1)]
    return intervals.sign_test(*only).p


@pytest.mark.parametrize(("images", "seeds"), [(2000, 1), (2000, 3), (50_000, 5)])
def test_a_difference_of_the_detectable_size_is_found_in_eighty_percent_of_studies(images: int, seeds: int) -> None:
    generator = np.random.default_rng([images, seeds, 1])
    sd = NOISE[images] if seeds > 1 else 0.0
    slope = (accuracy(SKILL + 0.01) - accuracy(SKILL)) / 0.01  # points per skill
    by_images = 100**2 * discordant() / images
    # with each seed's own luck averaged out, fewer images separate two means than two models
    size = power.smallest_difference(by_images / seeds, 2 * (slope * sd) ** 2 / seeds, 2 * (seeds - 1) or np.inf)
    found = 0
    for _ in range(STUDIES):
        study = simulated(generator, images, seeds, gap=size / slope, sd=sd)
        if seeds == 1:
            found += exact(study.rows) <= intervals.ALPHA
        else:
            estimate = variance_components.of_difference(*study.arms, variance_components.pooled(study.arms))
            assert estimate is not None
            found += intervals.student(*estimate)[1] <= intervals.ALPHA
    assert 0.66 <= found / STUDIES <= 0.91  # three standard errors of 150 studies


def discordant() -> float:
    """Share of images that one of two models of the same skill gets right and the other wrong."""
    right = ndtr((SKILL - NODES) / OWN_LUCK)
    return float(2 * (right * (1 - right)) @ SHARES / SHARES.sum())


def test_a_wild_arm_does_not_make_a_steady_one_different() -> None:
    generator = np.random.default_rng(3)
    different = 0
    for _ in range(STUDIES):
        first, second = (simulated(generator, 2000, 3, sd=sd).arms[arm] for arm, sd in ((0, 0.01), (1, 0.06)))
        estimate = variance_components.of_difference(first, second, variance_components.pooled([first, second]))
        assert estimate is not None
        different += intervals.student(*estimate)[1] <= intervals.ALPHA
    assert different <= most(0.06)
