"""Levels, crossings and budgets against curves that one can work out by hand."""

import numpy as np
import pandas as pd
import pytest

from bench.reporting.analysis import convergence
from bench.reporting.analysis.convergence import UNITS, ArmCurves, Curve
from bench.stats.variance_components import Design


def curve(cost: list[float], score: list[float]) -> Curve:
    return Curve(dict.fromkeys(UNITS, np.array(cost, float)), np.array(score, float))


def arm(name: str, *curves: Curve) -> ArmCurves:
    return ArmCurves("t", name, name, Design(tuple(f"{name} {seed}" for seed in range(len(curves)))), curves)


EARLY = arm("early", curve([1, 2, 3, 4], [20, 40, 50, 50]), curve([1, 2, 3, 4], [20, 40, 54, 54]))
LATE = arm("late", curve([11, 12, 13], [10, 40, 80]), curve([11, 12, 13], [10, 40, 80]))


def test_a_level_is_reached_between_two_points() -> None:
    assert convergence.cost_to_reach(EARLY.curves[0], "epochs", 30) == pytest.approx(1.5)
    assert convergence.cost_to_reach(EARLY.curves[0], "epochs", 5) == 1
    assert np.isnan(convergence.cost_to_reach(EARLY.curves[0], "epochs", 60))


def test_a_level_that_one_seed_never_reaches_has_no_mean() -> None:
    row = convergence.levels([EARLY], [52]).iloc[0]
    assert (row["seeds"], row["reached"]) == (2, 1)
    assert np.isnan(row["epochs"])


def test_intervals_of_levels_are_over_seeds() -> None:
    row = convergence.levels([arm("a", curve([0, 10], [0, 10]), curve([0, 20], [0, 10]))], [5]).iloc[0]
    assert row["epochs"] == pytest.approx(7.5)
    assert row["epochs_low"] == 0.0  # a cost is not negative
    assert row["epochs_high"] == pytest.approx(7.5 + 12.706 * 2.5, rel=1e-3)


def test_levels_are_shares_of_the_best_final_score_unless_the_study_names_them() -> None:
    assert set(convergence.levels([EARLY, LATE])["level"]) == {40, 60, 72, 76, 79.2}
    assert set(convergence.levels([EARLY, LATE], [33])["level"]) == {33}


def test_area_is_the_mean_score_over_the_stretch_that_all_went_through() -> None:
    other = arm("other", curve([2, 4], [40, 60]))
    frame = convergence.areas([EARLY, other]).query("unit == 'epochs'").set_index("arm")
    assert (frame["start"] == 2).all()
    assert frame.loc["other", "area"] == pytest.approx(50)
    assert frame.loc["early", "area"] == pytest.approx(((45 + 50) / 2 + (47 + 54) / 2) / 2)
    assert convergence.areas([EARLY, LATE]).empty


def test_lines_cross_where_they_are_equal() -> None:
    rising, flat = curve([0, 10], [0, 100]), curve([0, 10], [30, 30])
    assert convergence.last_crossing(rising, flat, "epochs") == pytest.approx((3, 30, True))
    assert convergence.last_crossing(flat, rising, "epochs") == pytest.approx((3, 30, False))
    assert convergence.last_crossing(flat, curve([0, 10], [40, 40]), "epochs") is None


def test_who_pays_before_the_first_score_leads_later() -> None:
    row = convergence.crossings([EARLY, LATE]).query("unit == 'images_all'").iloc[0]
    assert (row["leads_before"], row["leads_after"]) == ("early", "late")
    assert row["at"] == pytest.approx(12.3)  # 40 + 40 * 0.3 = 52, the last score of the other
    assert row["low"] < row["at"] < row["high"]


def test_matched_budgets_compare_what_had_been_reached() -> None:
    frame = convergence.matched([EARLY, LATE]).query("unit == 'images_all'")
    assert sorted(set(frame["budget"])) == [4, 13]
    small, large = (frame[frame["budget"] == budget].set_index("arm") for budget in (4, 13))
    assert np.isnan(small.loc["late", "score"])
    assert (small.loc["early", "score"], small.loc["early", "best"]) == (52, True)
    assert (large.loc["early", "score"], large.loc["late", "score"]) == (52, 80)
    assert large["best"].tolist() == [False, True]


def test_an_arm_that_costs_more_and_scores_less_is_not_on_the_front() -> None:
    dear = arm("dear", curve([1, 20], [10, 70]))
    frame = convergence.pareto([EARLY, LATE, dear]).query("unit == 'flops_all'").set_index("arm")
    assert frame["on_front"].to_dict() == {"early": True, "late": True, "dear": False}


def test_five_fine_tunings_of_one_pretraining_count_once_in_a_mean() -> None:
    nested = ArmCurves("t", "a", "a", Design(("p", "p", "q")), LATE.curves[:1] * 3)
    assert nested.over_seeds([1.0, 1.0, 4.0])[0] == pytest.approx(2.5)


def test_without_records_there_are_no_numbers() -> None:
    for frame in (convergence.levels([]), convergence.areas([]), convergence.crossings([]), convergence.matched([])):
        assert isinstance(frame, pd.DataFrame)
        assert frame.empty
