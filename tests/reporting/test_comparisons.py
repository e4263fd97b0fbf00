"""When two arms are told apart, and when not."""

import numpy as np
import pytest

from bench.config.stage import PlannedArm
from bench.reporting.analysis.comparisons import Comparison, compare_arms
from bench.reporting.analysis.outcomes import ScoredArm, SeedResult
from bench.reporting.analysis.summary import _narrow


def arm(name: str, right: np.ndarray) -> ScoredArm:
    """An arm whose seeds are the rows of `right` (S, N)."""
    planned = PlannedArm(
        id=name, label=name, method="vit", variant="", size="nano", task="t", budget="", metric="top1",
        fidelity="exact", stages={seed: {} for seed in range(len(right))},
    )  # fmt: skip
    ids = tuple(f"{i:04d}" for i in range(right.shape[1]))
    seeds = [SeedResult(s, {}, ids, row.astype(float)[:, None], np.ones((len(row), 1))) for s, row in enumerate(right)]
    return ScoredArm(planned, tuple(seeds))


def right(*counts: int, images: int = 1000) -> np.ndarray:
    """Seeds that get the first so many images right."""
    return np.arange(images)[None] < np.array(counts)[:, None]


def compared(*arms: ScoredArm) -> Comparison:
    return compare_arms("t", list(arms), replicates=2000)


def test_a_large_difference_over_steady_seeds_is_told_apart() -> None:
    comparison = compared(arm("a", right(800, 802)), arm("b", right(700, 703)))
    (difference,) = comparison.differences
    assert difference.verdict == "different"
    assert difference.value == pytest.approx(9.95)
    assert comparison.like_best() == ["a"]


def test_a_difference_within_the_noise_of_seeds_is_not() -> None:
    comparison = compared(arm("a", right(800, 700)), arm("b", right(720, 640)))
    assert comparison.differences[0].verdict == "retraining"
    assert comparison.like_best() == ["a", "b"]


def test_a_difference_of_a_few_images_is_not() -> None:
    assert compared(arm("a", right(800)), arm("b", right(798))).differences[0].verdict == "images"


def test_with_one_seed_the_verdict_speaks_of_these_weights_only() -> None:
    assert compared(arm("a", right(800)), arm("b", right(700))).differences[0].verdict == "different weights"


def test_equal_arms_are_a_tie() -> None:
    comparison = compared(arm("a", right(700, 710)), arm("b", right(700, 710)))
    assert (comparison.differences[0].value, comparison.differences[0].p) == (0.0, 1.0)
    assert comparison.like_best() == ["a", "b"]


def test_more_arms_make_each_pair_harder_to_tell_apart() -> None:
    a, b = arm("a", right(800)), arm("b", right(795))
    alone = compared(a, b).differences[0]
    among = compared(a, b, *[arm(f"c{i}", right(795)) for i in range(6)]).between("a", "b")
    assert alone.p == among.p
    assert among.p_adjusted > alone.p_adjusted


def test_a_difference_read_backwards_has_all_signs_turned() -> None:
    comparison = compared(arm("a", right(800, 802)), arm("b", right(700, 703)))
    there, back = comparison.between("a", "b"), comparison.between("b", "a")
    assert back.value == -there.value
    assert back.interval == (-there.interval.high, -there.interval.low)
    assert (back.by_seed[0].first_only, back.by_seed[0].second_only) == (0, 100)


def test_arms_without_a_result_have_no_score_and_no_difference() -> None:
    empty = ScoredArm(arm("b", right(1)).planned, ())
    comparison = compared(arm("a", right(800)), empty)
    assert [score.arm.planned.id for score in comparison.scores] == ["a"]
    assert comparison.differences == ()


def test_arms_with_the_same_score_are_both_highest() -> None:
    comparison = compared(arm("a", right(700)), arm("b", right(700)[:, ::-1]), arm("c", right(600)))
    assert comparison.highest() == ["a", "b"]


class OnePretraining:
    """All seeds of an arm start from the same pretraining."""

    def pretraining_of(self, arm: PlannedArm, seed: int) -> str:
        return arm.id


def test_five_fine_tunings_of_one_pretraining_say_nothing_about_pretraining_again() -> None:
    arms = [arm("a", right(800, 802, 801, 799, 803)), arm("b", right(700, 703, 701, 702, 699))]
    comparison = compare_arms("t", arms, 500, outcomes=OnePretraining())  # type: ignore[arg-type]
    assert comparison.differences[0].verdict == "different fine-tunings"
    assert comparison.scores[0].design.sentence == "1 pretraining, 5 fine-tunings: n is 1, not 5"
    assert "its differences are of this pretraining, not of the method" in " ".join(_narrow(comparison, []))


def test_one_seed_beside_several_is_about_weights() -> None:
    comparison = compared(arm("a", right(800)), arm("b", right(700, 702, 701)))
    assert (comparison.differences[0].verdict, comparison.differences[0].scope) == ("different weights", "weights")


def test_the_probability_of_being_first_is_shared_by_equals_and_sums_to_one() -> None:
    same = compared(arm("a", right(700)), arm("b", right(700)), arm("c", right(600)))
    assert [score.probability_best for score in same.scores] == pytest.approx([0.5, 0.5, 0.0])
    near = compared(arm("a", right(700, 690)), arm("b", right(700, 710)[:, ::-1]))
    assert sum(score.probability_best for score in near.scores) == pytest.approx(1.0)
    assert near.scores[1].probability_best > near.scores[0].probability_best > 0
