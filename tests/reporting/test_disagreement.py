"""Where arms answer differently, and how well a model knows when it is right, against counts by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.config.stage import PlannedArm
from bench.reporting.analysis import disagreement
from bench.reporting.analysis.comparisons import Comparison, compare_arms
from bench.reporting.analysis.outcomes import ScoredArm, SeedResult

LABELS = np.array([0] * 10 + [1] * 10)


def arm(name: str, *right: list[int], classes: tuple[str, ...] = ()) -> ScoredArm:
    """An arm whose seeds are right on these of 20 images."""
    planned = PlannedArm(
        id=name, label=name, method="vit", variant="", size="nano", task="t", budget="", metric="top1",
        fidelity="exact", stages={seed: {} for seed in range(len(right))},
    )  # fmt: skip
    ids = tuple(f"{i:02d}" for i in range(20))
    hits = [np.isin(np.arange(20), images).astype(float)[:, None] for images in right]
    seeds = [SeedResult(s, {}, ids, own, np.ones((20, 1)), LABELS, classes=classes) for s, own in enumerate(hits)]
    return ScoredArm(planned, tuple(seeds))


def compared(*arms: ScoredArm) -> Comparison:
    return compare_arms("t", list(arms), 200)


GOOD = arm("good", list(range(16)), list(range(17)), classes=("cat", "dog"))
WEAK = arm("weak", [*range(8), 19], [*range(7), 19], classes=("cat", "dog"))


def test_confidence_that_is_right_as_often_as_it_says_has_no_error() -> None:
    sure = np.array([0.8] * 10 + [0.55] * 20)
    right = np.array([True] * 8 + [False] * 2 + [True] * 11 + [False] * 9)
    assert disagreement.expected_calibration_error(sure, right) == pytest.approx(0)
    assert disagreement.expected_calibration_error(np.ones(4), np.array([True, False, False, False])) == pytest.approx(
        75
    )
    assert disagreement.expected_calibration_error(
        np.array([0.9, 0.9, 0.1]), np.array([True, False, False])
    ) == pytest.approx(100 * (2 / 3 * abs(0.9 - 0.5) + 1 / 3 * 0.1))


def test_agreement_is_over_all_pairs_of_seeds() -> None:
    (row,) = disagreement.agreement([compared(GOOD, WEAK)]).to_dict("records")
    assert row["both"] == pytest.approx(5 * (8 + 7 + 8 + 7) / 4)
    assert row["second_only"] == pytest.approx(5.0)
    assert sum(row[name] for name in ("both", "first_only", "second_only", "neither")) == pytest.approx(100)


def test_the_surest_disagreements_stand_first() -> None:
    won, lost = disagreement.disagreements(GOOD, WEAK)
    assert won[:-2] == [f"{i:02d}" for i in range(8, 16)]
    assert won[-2:] == ["07", "16"]  # one seed of each differs here
    assert lost == ["19"]
    (flips,) = disagreement.flips([compared(WEAK, GOOD)], most=3)
    assert (flips.first, flips.won, flips.lost) == ("good", ("08", "09", "10"), ("19",))


def test_classes_are_compared_on_their_own_images() -> None:
    frame = disagreement.classes([compared(GOOD, WEAK)])
    assert frame["class_name"].tolist() == ["cat", "dog"]
    assert frame["images"].tolist() == [10, 10]
    assert frame["difference"].tolist() == pytest.approx([25.0, 55.0])
    dog = frame.iloc[1]
    assert dog["p"] == pytest.approx(2 * (1 + 8) / 2**8)  # 7 images to 1
    assert dog["p_adjusted"] >= dog["p"]


def test_areas_have_classes_that_occur_and_no_test() -> None:
    planned = GOOD.planned.model_copy(update={"metric": "mIoU"})
    totals = np.array([[4.0, 0, 2], [4, 0, 2]])

    def areas(share: float) -> SeedResult:
        return SeedResult(0, {}, ("a", "b"), totals * share, totals, classes=("sky", "sea", "sun"))

    first = ScoredArm(planned, (areas(0.5),))
    second = ScoredArm(planned.model_copy(update={"id": "x", "label": "x"}), (areas(0.25),))
    frame = disagreement.classes([compared(first, second)])
    assert frame["class_name"].tolist() == ["sky", "sun"]
    assert frame["difference"].tolist() == [25.0, 25.0]
    assert frame["p"].isna().all()


def test_calibration_is_of_arms_that_stored_their_confidence() -> None:
    class Stored:
        arms = {  # noqa: RUF012
            "good": replace(GOOD, seeds=tuple(replace(s, confidence=np.full(20, 0.8)) for s in GOOD.seeds)),
            "weak": WEAK,
        }

    (row,) = disagreement.calibration(Stored()).to_dict("records")  # type: ignore[arg-type]
    assert (row["arm"], row["confidence"], row["seeds"]) == ("good", pytest.approx(80), 2)
    assert row["ece"] == pytest.approx((0 + 5) / 2)
