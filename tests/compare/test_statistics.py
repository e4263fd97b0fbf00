"""Every statistic against a formula, a library or a loop that is too simple to be wrong."""

import numpy as np
import pytest
from scipy import stats

from bench.compare import statistics
from bench.compare.statistics import Counts, Spread


def accuracy_counts(right: np.ndarray) -> Counts:
    hits = right.astype(np.float64)[:, :, None]
    return Counts(hits, np.ones_like(hits))


@pytest.mark.parametrize(("right", "images"), [(0, 20), (7, 20), (20, 20), (1823, 2000)])
def test_wilson_interval_is_scipys(right: int, images: int) -> None:
    expected = stats.binomtest(right, images).proportion_ci(0.95, method="wilson")
    found = statistics.wilson(100 * right / images, images)
    assert found == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)


def test_accuracy_is_the_share_of_images_that_are_right() -> None:
    right = np.array([[1, 1, 0, 0], [1, 1, 1, 0]])
    assert statistics.scores(accuracy_counts(right)).tolist() == [50.0, 75.0]


def test_miou_is_the_mean_of_class_ratios_over_classes_that_occur() -> None:
    intersect = np.array([[[3, 0, 0], [1, 2, 0]]], dtype=float)  # one seed, two images, three classes
    union = np.array([[[4, 2, 0], [4, 2, 0]]], dtype=float)
    assert statistics.scores(Counts(intersect, union))[0] == pytest.approx(100 * (4 / 8 + 2 / 4) / 2)


def test_bootstrap_equals_a_loop_over_drawn_images() -> None:
    generator = np.random.default_rng(0)
    union = generator.integers(0, 5, (2, 6, 3)).astype(float)
    intersect = np.floor(union * generator.random(union.shape))
    found = statistics.bootstrap({"a": Counts(intersect, union)}, draws=7, seed=5)["a"]
    drawn = np.random.default_rng(5).integers(0, 6, size=(7, 6))
    for score, images in zip(found, drawn, strict=True):
        by_seed = []
        for hits, totals in zip(intersect, union, strict=True):
            ratios = [
                sum(hits[i, c] for i in images) / sum(totals[i, c] for i in images)
                for c in range(3)
                if sum(totals[i, c] for i in images) > 0
            ]
            by_seed.append(100 * sum(ratios) / len(ratios))
        assert score == pytest.approx(sum(by_seed) / 2)


def test_bootstrap_does_not_depend_on_how_many_weights_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {"a": accuracy_counts(np.random.default_rng(1).random((1, 50)) < 0.7)}
    whole = statistics.bootstrap(arms, draws=40)["a"]
    monkeypatch.setattr(statistics, "WEIGHTS_AT_ONCE", 150)
    assert np.array_equal(whole, statistics.bootstrap(arms, draws=40)["a"])


def test_bootstrap_spread_is_the_binomial_one() -> None:
    right = np.arange(500)[None] < 400
    drawn = statistics.bootstrap({"a": accuracy_counts(right)}, draws=4000)["a"]
    assert np.std(drawn) == pytest.approx(100 * np.sqrt(0.8 * 0.2 / 500), rel=0.05)


def test_pairing_makes_the_interval_of_a_difference_narrower() -> None:
    generator = np.random.default_rng(2)
    first = generator.random((1, 800)) < 0.7
    second = np.where(generator.random((1, 800)) < 0.05, ~first, first)  # 5 % of the images differ
    drawn = statistics.bootstrap({"a": accuracy_counts(first), "b": accuracy_counts(second)}, draws=2000)
    paired = np.std(drawn["a"] - drawn["b"])
    assert paired < 0.5 * np.hypot(np.std(drawn["a"]), np.std(drawn["b"]))


def test_equal_arms_have_a_difference_of_zero_and_p_of_one() -> None:
    right = np.random.default_rng(3).random((1, 100)) < 0.5
    drawn = statistics.bootstrap({"a": accuracy_counts(right), "b": accuracy_counts(right)}, draws=200)
    assert statistics.two_sided(drawn["a"] - drawn["b"]) == 1.0


def test_bootstrap_p_is_never_zero() -> None:
    assert statistics.two_sided(np.full(99, 5.0)) == pytest.approx(2 / 100)


def test_mcnemar_is_the_binomial_sum_done_by_hand() -> None:
    first = np.array([True] * 9 + [False] + [True] * 20)
    second = np.array([False] * 9 + [True] + [True] * 20)
    found = statistics.mcnemar(first, second)
    assert (found.first_only, found.second_only) == (9, 1)
    assert found.p == pytest.approx(2 * (1 + 10) / 2**10)


def test_mcnemar_of_models_that_agree_everywhere_is_one() -> None:
    same = np.array([True, False, True])
    assert statistics.mcnemar(same, same).p == 1.0


def test_holm_multiplies_by_what_is_left_and_never_falls() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert statistics.holm([]) == []


def test_spread_of_one_seed_has_no_deviation() -> None:
    assert statistics.spread([71.0]) == Spread(71.0, None, 1)
    assert statistics.spread([70.0, 72.0]).sd == pytest.approx(np.sqrt(2))


def test_retraining_noise_is_pooled_over_arms_by_degrees_of_freedom() -> None:
    noise = statistics.retraining([Spread(70, 1.0, 2), Spread(60, 2.0, 4), Spread(50, None, 1)])
    assert noise is not None
    assert noise.freedom == 4
    assert noise.sd == pytest.approx(np.sqrt((1.0 * 1 + 4.0 * 3) / 4))
    assert statistics.retraining([Spread(70, None, 1)]) is None


def test_smallest_difference_is_where_students_t_test_turns() -> None:
    first, second = [70.0, 71.0, 70.4], [72.0, 71.5, 72.6]
    noise = statistics.retraining([statistics.spread(first), statistics.spread(second)])
    assert noise is not None
    limit = statistics.smallest_difference(noise, 3, 3)
    gap = np.mean(second) - np.mean(first)
    shifted = [value - gap + limit for value in second]
    assert stats.ttest_ind(first, shifted).pvalue == pytest.approx(0.05)
