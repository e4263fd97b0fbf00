"""Every statistic against a formula, a library or a loop that is too simple to be wrong."""

import numpy as np
import pytest
from scipy import stats

from bench.stats import bootstrap, intervals
from bench.stats.bootstrap import Counts
from bench.stats.intervals import Spread


def accuracy_counts(right: np.ndarray) -> Counts:
    hits = right.astype(np.float64)[:, :, None]
    return Counts(hits, np.ones_like(hits))


@pytest.mark.parametrize(("right", "images"), [(0, 20), (7, 20), (20, 20), (1823, 2000)])
def test_wilson_interval_is_scipys(right: int, images: int) -> None:
    expected = stats.binomtest(right, images).proportion_ci(0.95, method="wilson")
    interval = intervals.wilson(100 * right / images, images)
    assert interval == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)


@pytest.mark.parametrize("images", [7, 200, 400, 2000])
@pytest.mark.parametrize("score", [0.0, 100.0])
def test_wilson_interval_holds_the_score_also_at_its_ends(score: float, images: int) -> None:
    low, high = intervals.wilson(score, images)
    assert low <= score <= high


def test_accuracy_is_the_share_of_images_that_are_right() -> None:
    right = np.array([[1, 1, 0, 0], [1, 1, 1, 0]])
    assert bootstrap.scores(accuracy_counts(right)).tolist() == [50.0, 75.0]


def test_miou_is_the_mean_of_class_ratios_over_classes_that_occur() -> None:
    intersect = np.array([[[3, 0, 0], [1, 2, 0]]], dtype=float)  # one seed, two images, three classes
    union = np.array([[[4, 2, 0], [4, 2, 0]]], dtype=float)
    assert bootstrap.scores(Counts(intersect, union))[0] == pytest.approx(100 * (4 / 8 + 2 / 4) / 2)


def areas() -> Counts:
    generator = np.random.default_rng(0)
    union = generator.integers(0, 5, (2, 6, 3)).astype(float)
    return Counts(np.floor(union * generator.random(union.shape)), union)


def test_miou_is_computed_anew_from_the_areas_of_each_resample() -> None:
    intersect, union = areas()
    scores = bootstrap.bootstrap({"a": areas()}, replicates=7, seed=5)["a"]
    (weights,) = bootstrap._weights(np.ones(6, np.int64), 7, seed=5)
    assert weights.sum(1).tolist() == [6.0] * 7
    for replicate, times in enumerate(weights):
        for seed in range(2):
            ratios = []
            for c in range(3):
                total = sum(times[i] * union[seed, i, c] for i in range(6))
                if total > 0:
                    ratios.append(sum(times[i] * intersect[seed, i, c] for i in range(6)) / total)
            assert scores[seed, replicate] == pytest.approx(100 * sum(ratios) / len(ratios), rel=1e-5)


def test_resampling_groups_of_like_images_is_resampling_images() -> None:
    generator = np.random.default_rng(1)
    right = generator.random((3, 400)) < np.array([[0.9], [0.8], [0.7]])
    groups = bootstrap.group_images(right.astype(float))
    assert groups.sizes.sum() == 400
    assert len(groups.sizes) <= 8
    assert groups.values.T @ groups.sizes == pytest.approx(right.sum(1))
    grouped, single = bootstrap.resample_accuracy(groups, 4000), _one_by_one(right, 4000)
    assert np.cov(grouped) == pytest.approx(np.cov(single), rel=0.1, abs=0.15)
    assert grouped.mean(1) == pytest.approx(100 * right.mean(1), abs=0.15)


def _one_by_one(right: np.ndarray, replicates: int) -> np.ndarray:
    images = np.random.default_rng(2).integers(0, right.shape[1], (replicates, right.shape[1]))
    return np.stack([100 * model[images].mean(1) for model in right])


def test_small_and_large_groups_are_resampled_as_often_as_they_are_large() -> None:
    sizes = np.array([500, 40, 3, 1, 1])
    weights = np.concatenate(list(bootstrap._weights(sizes, 4000, seed=0)))
    assert (weights.sum(1) == sizes.sum()).all()
    assert weights.mean(0) == pytest.approx(sizes, rel=0.05, abs=0.1)
    assert weights.var(0) == pytest.approx(sizes * (1 - sizes / sizes.sum()), rel=0.1)


def test_bootstrap_does_not_depend_on_how_many_weights_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {"a": areas()}
    spread = bootstrap.bootstrap(arms, replicates=4000)["a"].std()
    monkeypatch.setattr(bootstrap, "WEIGHTS_AT_ONCE", 60)
    assert bootstrap.bootstrap(arms, replicates=4000)["a"].std() == pytest.approx(spread, rel=0.05)


def test_bootstrap_spread_is_the_binomial_one() -> None:
    right = np.arange(500)[None] < 400
    replicates = bootstrap.bootstrap({"a": accuracy_counts(right)}, replicates=4000)["a"]
    assert np.std(replicates) == pytest.approx(100 * np.sqrt(0.8 * 0.2 / 500), rel=0.05)


def test_pairing_makes_the_interval_of_a_difference_narrower() -> None:
    generator = np.random.default_rng(2)
    first = generator.random((1, 800)) < 0.7
    second = np.where(generator.random((1, 800)) < 0.05, ~first, first)  # 5 % of the images differ
    replicates = bootstrap.bootstrap({"a": accuracy_counts(first), "b": accuracy_counts(second)}, replicates=2000)
    paired = np.std(replicates["a"] - replicates["b"])
    assert paired < 0.5 * np.hypot(np.std(replicates["a"]), np.std(replicates["b"]))


def test_equal_arms_have_a_difference_of_zero_and_p_of_one() -> None:
    right = np.random.default_rng(3).random((1, 100)) < 0.5
    replicates = bootstrap.bootstrap({"a": accuracy_counts(right), "b": accuracy_counts(right)}, replicates=200)
    assert intervals.bootstrap_p(replicates["a"] - replicates["b"]) == 1.0


def test_arms_without_images_have_no_replicates() -> None:
    assert bootstrap.bootstrap({}) == {}


def test_bootstrap_p_is_never_zero() -> None:
    assert intervals.bootstrap_p(np.full(99, 5.0)) == pytest.approx(2 / 100)


def test_mcnemar_is_the_binomial_sum_done_by_hand() -> None:
    first = np.array([True] * 9 + [False] + [True] * 20)
    second = np.array([False] * 9 + [True] + [True] * 20)
    test = intervals.mcnemar(first, second)
    assert (test.first_only, test.second_only) == (9, 1)
    assert test.p == pytest.approx(2 * (1 + 10) / 2**10)


def test_mcnemar_of_models_that_agree_everywhere_is_one() -> None:
    same = np.array([True, False, True])
    assert intervals.mcnemar(same, same).p == 1.0


def test_holm_multiplies_by_the_tests_that_remain_and_never_falls() -> None:
    assert intervals.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert intervals.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert intervals.holm([]) == []


def test_holm_does_not_count_what_was_not_tested() -> None:
    assert intervals.holm([0.01, float("nan"), 0.03]) == pytest.approx([0.02, float("nan"), 0.03], nan_ok=True)


def test_spread_of_one_seed_has_no_deviation() -> None:
    assert intervals.spread([71.0]) == Spread(71.0, None, 1)
    assert intervals.spread([70.0, 72.0]).sd == pytest.approx(np.sqrt(2))


def test_interval_of_a_few_values_is_students() -> None:
    values = [70.0, 71.0, 70.4]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert intervals.mean_interval(values) == pytest.approx((expected.low, expected.high))
    assert np.isnan(intervals.mean_interval([70.0])).all()


def test_a_deviation_that_is_known_exactly_gives_the_normal_interval() -> None:
    interval, p = intervals.t_interval(1.0, 0.5, np.inf)
    assert interval == pytest.approx((1 - 0.98, 1 + 0.98), abs=1e-3)
    assert p == pytest.approx(0.0455, abs=1e-4)
    assert intervals.t_interval(0.0, 0.0, 3) == ((0.0, 0.0), 1.0)
