"""Components of variance against formulas of balanced designs; what one pretraining can and cannot say."""

import numpy as np
import pytest
from scipy import stats

from bench.stats import variance_components
from bench.stats.variance_components import ArmUnits, Design, SeedVariance

FIVE_OF_ONE = Design(("p",) * 5)
TWICE_TWO = Design(("p", "p", "q", "q"))


def arm(scores: list[float], *, by_images: float = 0.0, starts: tuple[str, ...] = (), seed: int = 0) -> ArmUnits:
    """Trainings with these scores; on resampled images all of them move together by `by_images` points."""
    shared = by_images * np.random.default_rng(seed).normal(size=4000)
    replicates = np.array(scores)[:, None] + shared
    names = starts or tuple(f"{scores[0]} {seed} {number}" for number in range(len(scores)))
    return variance_components.arm_units(Design(names), np.array(scores), replicates)


def test_five_fine_tunings_of_one_pretraining_are_one_pretraining() -> None:
    assert FIVE_OF_ONE.scope == "fine-tunings"
    assert FIVE_OF_ONE.sentence == "1 pretraining, 5 fine-tunings: n is 1, not 5"
    assert Design(("a", "b")).sentence == "trained 2 times"
    assert Design(("a",)).scope == "weights"


def test_every_pretraining_counts_once_however_often_it_was_fine_tuned() -> None:
    design = Design(("p", "p", "p", "q"))
    assert design.weights() @ np.array([70.0, 70, 70, 80]) == pytest.approx(75)
    assert design.unit_scores(np.array([70.0, 70, 70, 80])).tolist() == [70.0, 80.0]


def test_without_noise_of_images_the_test_is_students() -> None:
    first, second = [70.0, 71.0, 70.4], [72.0, 71.5, 72.6]
    a, b = arm(first), arm(second)
    estimate = variance_components.estimate_difference(a, b, variance_components.pooled_variance([a, b]))
    assert estimate is not None
    expected = stats.ttest_ind(first, second)
    assert estimate.value / estimate.standard_error == pytest.approx(expected.statistic)
    assert estimate.df == pytest.approx(expected.df)


def test_without_a_shared_noise_the_test_is_welchs() -> None:
    first, second = [70.0, 71.0, 70.4], [72.0, 71.5, 79.6]
    estimate = variance_components.estimate_difference(arm(first), arm(second), None)
    expected = stats.ttest_ind(first, second, equal_var=False)
    assert estimate is not None
    assert (estimate.value / estimate.standard_error, estimate.df) == pytest.approx((expected.statistic, expected.df))


def test_arms_of_the_same_pretrainings_are_compared_within_each() -> None:
    starts = ("p", "q", "r")
    first, second = arm([70.0, 75.0, 80.0], starts=starts), arm([71.0, 76.1, 80.9], starts=starts)
    estimate = variance_components.estimate_difference(
        first, second, variance_components.pooled_variance([first, second])
    )
    expected = stats.ttest_rel([70.0, 75.0, 80.0], [71.0, 76.1, 80.9])
    assert estimate is not None
    assert (estimate.value / estimate.standard_error, estimate.df) == pytest.approx((expected.statistic, expected.df))


def test_images_and_training_add_their_variances() -> None:
    first, second = (arm([70.0, 71.0], by_images=0.5, seed=seed) for seed in (1, 2))
    estimate = variance_components.estimate_difference(
        first, second, variance_components.pooled_variance([first, second])
    )
    assert estimate is not None
    assert estimate.standard_error**2 == pytest.approx(2 * 0.25 + 0.5 * (1 / 2 + 1 / 2), rel=0.1)
    assert estimate.df > 2


def test_what_images_do_to_the_spread_of_seeds_is_counted_once() -> None:
    generator = np.random.default_rng(0)
    replicates = 70 + generator.normal(size=(5, 4000))  # each seed moves by one point with the images, on its own
    scores = np.array([70 + d for d in stats.norm.ppf([0.1, 0.3, 0.5, 0.7, 0.9])])
    units = variance_components.arm_units(Design(tuple("abcde")), scores, replicates)
    noise = variance_components.seed_variance(units)
    assert noise.from_images == pytest.approx(1.0, rel=0.05)
    assert noise.observed == pytest.approx(scores.var(ddof=1))
    assert noise.net == max(0.0, noise.observed - noise.from_images)


def test_a_single_training_says_nothing_about_training_again() -> None:
    assert variance_components.estimate_score(arm([70.0]), None) is None
    assert variance_components.estimate_difference(arm([70.0]), arm([71.0, 72.0]), None) is None
    assert variance_components.seed_variance(arm([70.0])) == SeedVariance(0.0, 0.0, 0)


def test_arms_that_clearly_differ_in_noise_do_not_share_one() -> None:
    steady, wild = arm([70.0, 70.01, 70.02, 69.99]), arm([60.0, 75.0, 80.0, 66.0])
    assert variance_components.pooled_variance([steady, steady]) is not None
    assert variance_components.pooled_variance([steady, wild]) is None


def test_the_narrower_design_decides_what_a_difference_is_about() -> None:
    assert variance_components.scope_of(Design(("a", "b")), FIVE_OF_ONE) == "fine-tunings"
    assert variance_components.scope_of(FIVE_OF_ONE, Design(("a",))) == "weights"


def test_variance_components_are_those_of_a_nested_design() -> None:
    scores = np.array([70.0, 71.0, 75.0, 77.0])
    sds = variance_components.component_sds(TWICE_TWO, scores)
    within = (0.5 + 2.0) / 2
    assert sds.finetuning == pytest.approx(np.sqrt(within))
    assert sds.pretraining == pytest.approx(np.sqrt(np.var([70.5, 76.0], ddof=1) - within / 2))
    assert variance_components.component_sds(FIVE_OF_ONE, np.arange(5.0)).pretraining is None
    assert variance_components.component_sds(Design(("a", "b")), np.array([1.0, 3.0])).finetuning is None
