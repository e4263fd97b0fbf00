"""Convergence in numbers: cost to reach a score, crossings of two curves, scores at a matched budget.

Costs are counted in five units side by side, because a method that needs few epochs of the last stage may have paid
before it. Curves are scores on `val` while training under one schedule: a schedule made for a smaller budget would end
higher than a curve cut at that budget, so matched budgets say what these runs had reached, not what was possible.

Letters: P points of a curve. Intervals are Student's over independent trainings, as in `variance_components`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import nan
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.integrate import trapezoid

from bench.reporting.analysis.outcomes import Outcomes
from bench.stats import intervals
from bench.stats.variance_components import Design

UNITS = {  # unit: the column of curves.convergence that counts it
    "epochs": "epoch", "images_own": "images_own", "images_all": "images", "flops_all": "flops",
    "device_hours_all": "device_hours",
}  # fmt: skip
COSTS = ("images_all", "flops_all", "device_hours_all")  # with all upstream stages: what a budget is spent on
SHARES = (0.5, 0.75, 0.9, 0.95, 0.99)  # of the best final score: the levels, where a study names none


class Curve(NamedTuple):
    """One seed of an arm: cost by unit (P,) and score (P,), in the order of training."""

    cost: Mapping[str, NDArray[np.float64]]
    score: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ArmCurves:
    """The curves of an arm, one for every seed, and how its seeds are nested in pretrainings."""

    task: str
    arm: str
    label: str
    design: Design
    curves: tuple[Curve, ...]

    @property
    def final(self) -> float:
        """Mean of the last scores, every pretraining counting once."""
        return float(self.design.weights() @ [curve.score[-1] for curve in self.curves])

    def over_seeds(self, values: Sequence[float]) -> tuple[float, float, float]:
        """Mean and interval of a value per seed, none below 0; not-a-number when one seed has none."""
        units = self.design.unit_scores(np.array(values, float))
        low, high = intervals.mean_interval(units.tolist())
        # neither scores nor costs are negative; an unknown limit (NaN, unequal to itself) stays unknown
        return float(units.mean()), max(low, 0.0) if low == low else low, high


def arm_curves(frame: pd.DataFrame, outcomes: Outcomes) -> list[ArmCurves]:
    """The curves of curves.convergence by arm, in the order of the plan."""
    arms = []
    for arm in outcomes.plan.arms:
        rows = frame[(frame["arm"] == arm.id) & frame["value"].notna()]
        by_seed = list(rows.groupby("seed", sort=False))
        if by_seed:
            design = Design(tuple(outcomes.pretraining_of(arm, int(str(seed))) for seed, _ in by_seed))
            curves = tuple(_curve(part) for _, part in by_seed)
            arms.append(ArmCurves(arm.task, arm.id, str(rows["label"].iloc[0]), design, curves))
    return arms


def _curve(part: pd.DataFrame) -> Curve:
    cost = {unit: part[column].to_numpy(float) for unit, column in UNITS.items()}
    return Curve(cost, part["value"].to_numpy(float))


def by_task(arms: Sequence[ArmCurves]) -> Iterator[list[ArmCurves]]:
    """The arms of each task."""
    for task in dict.fromkeys(arm.task for arm in arms):
        yield [arm for arm in arms if arm.task == task]


def cost_to_reach(curve: Curve, unit: str, level: float) -> float:
    """Cost at which a curve first reaches `level`, linear between two points; NaN when it never does."""
    above = np.flatnonzero(curve.score >= level)
    if not len(above):
        return nan
    at, cost = above[0], curve.cost[unit]
    if at == 0:
        return float(cost[0])
    return float(np.interp(level, curve.score[at - 1 : at + 1], cost[at - 1 : at + 1]))


def score_at(curve: Curve, unit: str, budget: float) -> float:
    """Score when `budget` is spent: linear between two points, the last one afterwards; NaN before the first one."""
    cost = curve.cost[unit]
    return nan if np.isnan(cost).any() or budget < cost[0] else float(np.interp(budget, cost, curve.score))


def levels(arms: Sequence[ArmCurves], scores: Sequence[float] = ()) -> pd.DataFrame:
    """Cost of every arm to reach each level. scores: the levels; else shares of the best final score of the task."""
    rows = []
    for task in by_task(arms):
        best = max(arm.final for arm in task)
        for level in scores or [round(share * best, 2) for share in SHARES]:
            rows += [_level(arm, level) for arm in task]
    columns = ["task", "arm", "label", "level", "seeds", "reached"]
    return pd.DataFrame(rows, columns=[*columns, *(f"{unit}{end}" for unit in UNITS for end in ("", "_low", "_high"))])


def _level(arm: ArmCurves, level: float) -> dict[str, object]:
    costs = {unit: [cost_to_reach(curve, unit, level) for curve in arm.curves] for unit in UNITS}
    # counted in epochs: they are known also where costs with upstream are not, after pretrained weights
    reached = int(np.sum(~np.isnan(costs["epochs"])))
    row = {"task": arm.task, "arm": arm.arm, "label": arm.label, "level": level, "seeds": len(arm.curves)}
    cells = {f"{unit}{end}": value for unit in UNITS
             for end, value in zip(("", "_low", "_high"), arm.over_seeds(costs[unit]), strict=True)}  # fmt: skip
    return {**row, "reached": reached, **cells}


def areas(arms: Sequence[ArmCurves]) -> pd.DataFrame:
    """Mean score of every arm over the range of a unit that all arms of its task went through.

    columns: task, arm, label, unit, area, low, high, start, end. Without such a range there is no row.
    """
    rows = []
    for task in by_task(arms):
        for unit in UNITS:
            costs = [curve.cost[unit] for arm in task for curve in arm.curves]
            start, end = max(cost[0] for cost in costs), min(cost[-1] for cost in costs)
            if start < end:
                rows += [
                    (arm.task, arm.arm, arm.label, unit,
                     *arm.over_seeds([_area(curve, unit, start, end) for curve in arm.curves]), start, end)
                    for arm in task
                ]  # fmt: skip
    return pd.DataFrame(rows, columns=["task", "arm", "label", "unit", "area", "low", "high", "start", "end"])


def _area(curve: Curve, unit: str, start: float, end: float) -> float:
    """Mean of a curve between two costs, by trapezoids."""
    cost = curve.cost[unit]
    x = np.concatenate([[start], cost[(cost > start) & (cost < end)], [end]])
    return float(trapezoid(np.interp(x, cost, curve.score), x) / (end - start))


def crossings(arms: Sequence[ArmCurves]) -> pd.DataFrame:
    """For every pair and unit, the cost from which on another arm leads than before; the last one, if several.

    An arm leads where the other has no score yet, and keeps its last score when it has ended. columns: task, first,
    second, first_label, second_label, unit, at, score, low, high, leads_before, leads_after.
    """
    rows = []
    for task in by_task(arms):
        pairs = [(first, second) for i, first in enumerate(task) for second in task[i + 1 :]]
        rows += [row for pair in pairs for unit in UNITS if (row := _crossing(*pair, unit))]
    names = ["task", "first", "second", "first_label", "second_label", "unit", "at", "score", "low", "high"]
    return pd.DataFrame(rows, columns=[*names, "leads_before", "leads_after"])


def _crossing(first: ArmCurves, second: ArmCurves, unit: str) -> tuple[object, ...] | None:
    crossing = last_crossing(_mean(first, unit), _mean(second, unit), unit)
    if crossing is None:
        return None
    at, score, first_leads = crossing
    by_seed = [last_crossing(a, b, unit) for a, b in zip(first.curves, second.curves, strict=False)]
    same = [cross[0] for cross in by_seed if cross and cross[2] == first_leads]
    # an interval only where every pair of seeds crosses in the same direction and no two share a pretraining
    independent = first.design.pretrainings == second.design.pretrainings == len(by_seed) == len(same)
    low, high = intervals.mean_interval(same) if independent else (nan, nan)
    low = max(low, 0.0) if independent else nan
    leaders = (second.label, first.label) if first_leads else (first.label, second.label)
    return (first.task, first.arm, second.arm, first.label, second.label, unit, at, score, low, high, *leaders)


def _mean(arm: ArmCurves, unit: str) -> Curve:
    """Mean of an arm's curves, point by point, as far as all its seeds go."""
    points, weights = min(len(curve.score) for curve in arm.curves), arm.design.weights()
    cost = weights @ np.stack([curve.cost[unit][:points] for curve in arm.curves])
    return Curve({unit: cost}, weights @ np.stack([curve.score[:points] for curve in arm.curves]))


def last_crossing(first: Curve, second: Curve, unit: str) -> tuple[float, float, bool] | None:
    """The last change of the lead: cost, score, whether `first` leads afterwards; None if there is none."""
    grid = np.unique(np.concatenate([first.cost[unit], second.cost[unit]]))
    if np.isnan(grid).any():
        return None
    lead = _lead(first, second, unit, grid)
    decided = np.flatnonzero(lead != 0)
    changes = [(int(a), int(b)) for a, b in pairwise(decided) if (lead[a] > 0) != (lead[b] > 0)]
    if not changes:
        return None
    before, after = changes[-1]
    at = float(grid[after])
    if np.isfinite(lead[[before, after]]).all():  # infinite: a curve leads from its first point on
        # np.interp wants rising x: the smaller lead first
        at = float(np.interp(0.0, np.sort(lead[[before, after]]), _ordered(grid, lead, before, after)))
    scores = [score_at(curve, unit, at) for curve in (first, second)]
    return at, float(np.nanmax(scores)), bool(lead[after] > 0)


def _ordered(grid: NDArray[np.float64], lead: NDArray[np.float64], before: int, after: int) -> NDArray[np.float64]:
    """The two costs around a crossing, in the order of the lead."""
    return grid[[before, after]] if lead[before] < lead[after] else grid[[after, before]]


def _lead(first: Curve, second: Curve, unit: str, grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lead of `first` in points at every cost of the grid; infinite where only one of the curves has a score."""
    a, b = (
        np.where(grid < curve.cost[unit][0], nan, np.interp(grid, curve.cost[unit], curve.score))
        for curve in (first, second)
    )
    alone = np.isnan(b).astype(float) - np.isnan(a)  # 1: only `first` has a score; -1: only `second`
    return np.where(alone != 0, np.copysign(np.inf, alone), np.nan_to_num(a - b))


def matched(arms: Sequence[ArmCurves]) -> pd.DataFrame:
    """Scores at a matched budget, upstream stages included; the budgets are the whole costs of the arms.

    columns: task, unit, budget, arm, label, score, low, high, best. An arm without a score yet has none.
    """
    rows = []
    for task in by_task(arms):
        for unit in COSTS:
            totals = [float(arm.design.weights() @ [curve.cost[unit][-1] for curve in arm.curves]) for arm in task]
            for budget in sorted({total for total in totals if np.isfinite(total)}):
                cells = [arm.over_seeds([score_at(c, unit, budget) for c in arm.curves]) for arm in task]
                best = np.nanmax([cell[0] for cell in cells] + [-np.inf])  # -inf: nanmax warns where all are NaN
                rows += [(arm.task, unit, budget, arm.arm, arm.label, *cell, cell[0] == best)
                         for arm, cell in zip(task, cells, strict=True)]  # fmt: skip
    return pd.DataFrame(rows, columns=["task", "unit", "budget", "arm", "label", "score", "low", "high", "best"])


def pareto(arms: Sequence[ArmCurves]) -> pd.DataFrame:
    """Final score and whole cost of every arm; on the Pareto front is an arm that no other one beats in both.

    columns: task, arm, label, unit, cost, score, on_front.
    """
    rows = []
    for task in by_task(arms):
        for unit in COSTS:
            costs = np.array([arm.design.weights() @ [c.cost[unit][-1] for c in arm.curves] for arm in task])
            scores = np.array([arm.final for arm in task])
            for arm, cost, score in zip(task, costs, scores, strict=True):
                beats = (costs <= cost) & (scores >= score) & ((costs < cost) | (scores > score))
                on_front = cost == cost and not beats.any()  # an unknown cost (NaN) is on no front
                rows.append((arm.task, arm.arm, arm.label, unit, float(cost), float(score), on_front))
    return pd.DataFrame(rows, columns=["task", "arm", "label", "unit", "cost", "score", "on_front"])
