"""Convergence in numbers: what it takes to reach a level, where two curves cross, who leads within a budget.

Costs are counted in five units side by side, because a method that needs few epochs of the last stage may have paid
before it. Curves are scores on `val` while training under one schedule: a schedule made for a smaller budget would end
higher than a curve cut at that budget, so matched budgets say what these runs had reached, not what was possible.

Letters: P points of a curve. Intervals are Student's over independent trainings, as in `components`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


class Path(NamedTuple):
    """An arm's curves, one for every seed, and how its seeds hang together."""

    task: str
    arm: str
    label: str
    design: Design
    curves: tuple[Curve, ...]

    @property
    def final(self) -> float:
        """Mean of the last scores, every pretraining counting once."""
        return float(self.design.shares() @ [curve.score[-1] for curve in self.curves])

    def over_seeds(self, values: Sequence[float]) -> tuple[float, float, float]:
        """Mean and interval of a value, none below 0, that every seed has; not-a-number when one has none."""
        units = self.design.units(np.array(values, float))
        low, high = intervals.mean_interval(units.tolist())
        return float(units.mean()), max(low, 0.0) if low == low else low, high


def paths(frame: pd.DataFrame, outcomes: Outcomes) -> list[Path]:
    """The curves of curves.convergence by arm, in the order of the plan."""
    found = []
    for arm in outcomes.plan.arms:
        here = frame[(frame["arm"] == arm.id) & frame["value"].notna()]
        by_seed = list(here.groupby("seed", sort=False))
        if by_seed:
            starts = [outcomes.start(arm, int(str(seed))) for seed, _ in by_seed]
            curves = tuple(_curve(part) for _, part in by_seed)
            found.append(Path(arm.task, arm.id, str(here["label"].iloc[0]), Design(tuple(starts)), curves))
    return found


def _curve(part: pd.DataFrame) -> Curve:
    cost = {unit: part[column].to_numpy(float) for unit, column in UNITS.items()}
    return Curve(cost, part["value"].to_numpy(float))


def by_task(arms: Sequence[Path]) -> Iterator[list[Path]]:
    """The arms of each task."""
    for task in dict.fromkeys(path.task for path in arms):
        yield [path for path in arms if path.task == task]


def reached(curve: Curve, unit: str, level: float) -> float:
    """Cost at which a curve first reaches `level`, between two points by a straight line; NaN when it never does."""
    above = np.flatnonzero(curve.score >= level)
    if not len(above):
        return nan
    at, cost = above[0], curve.cost[unit]
    if at == 0:
        return float(cost[0])
    return float(np.interp(level, curve.score[at - 1 : at + 1], cost[at - 1 : at + 1]))


def score_at(curve: Curve, unit: str, budget: float) -> float:
    """Score when `budget` is spent: by a straight line, the last one afterwards; NaN before the first one."""
    cost = curve.cost[unit]
    return nan if np.isnan(cost).any() or budget < cost[0] else float(np.interp(budget, cost, curve.score))


def levels(arms: Sequence[Path], wanted: Sequence[float] = ()) -> pd.DataFrame:
    """What every arm needed to reach each level. wanted: scores; else shares of the best final score of the task."""
    rows = []
    for task in by_task(arms):
        best = max(path.final for path in task)
        for level in wanted or [round(share * best, 2) for share in SHARES]:
            rows += [_level(path, level) for path in task]
    columns = ["task", "arm", "label", "level", "seeds", "reached"]
    return pd.DataFrame(rows, columns=[*columns, *(f"{unit}{end}" for unit in UNITS for end in ("", "_low", "_high"))])


def _level(path: Path, level: float) -> dict[str, object]:
    needed = {unit: [reached(curve, unit, level) for curve in path.curves] for unit in UNITS}
    there = int(np.sum(~np.isnan(needed["epochs"])))
    row = {"task": path.task, "arm": path.arm, "label": path.label, "level": level, "seeds": len(path.curves)}
    cells = {f"{unit}{end}": value for unit in UNITS
             for end, value in zip(("", "_low", "_high"), path.over_seeds(needed[unit]), strict=True)}  # fmt: skip
    return {**row, "reached": there, **cells}


def areas(arms: Sequence[Path]) -> pd.DataFrame:
    """Mean score of every arm over the stretch of a unit that all arms of its task went through.

    columns: task, arm, label, unit, area, low, high, start, end. Without such a stretch there is no row.
    """
    rows = []
    for task in by_task(arms):
        for unit in UNITS:
            costs = [curve.cost[unit] for path in task for curve in path.curves]
            start, end = max(cost[0] for cost in costs), min(cost[-1] for cost in costs)
            if start < end:
                rows += [
                    (path.task, path.arm, path.label, unit,
                     *path.over_seeds([_area(curve, unit, start, end) for curve in path.curves]), start, end)
                    for path in task
                ]  # fmt: skip
    return pd.DataFrame(rows, columns=["task", "arm", "label", "unit", "area", "low", "high", "start", "end"])


def _area(curve: Curve, unit: str, start: float, end: float) -> float:
    """Mean of a curve between two costs, by trapezoids."""
    cost = curve.cost[unit]
    x = np.concatenate([[start], cost[(cost > start) & (cost < end)], [end]])
    return float(trapezoid(np.interp(x, cost, curve.score), x) / (end - start))


def crossings(arms: Sequence[Path]) -> pd.DataFrame:
    """For every pair and unit, the cost from which on another arm leads than before; the last one, if several.

    An arm leads where the other has no score yet, and keeps its last score when it has ended. columns: task, first,
    second, first_label, second_label, unit, at, score, low, high, leads_before, leads_after.
    """
    rows = []
    for task in by_task(arms):
        pairs = [(one, other) for i, one in enumerate(task) for other in task[i + 1 :]]
        rows += [row for pair in pairs for unit in UNITS if (row := _crossing(*pair, unit))]
    names = ["task", "first", "second", "first_label", "second_label", "unit", "at", "score", "low", "high"]
    return pd.DataFrame(rows, columns=[*names, "leads_before", "leads_after"])


def _crossing(one: Path, other: Path, unit: str) -> tuple[object, ...] | None:
    found = last_crossing(_mean(one, unit), _mean(other, unit), unit)
    if found is None:
        return None
    at, score, first_leads = found
    by_seed = [last_crossing(a, b, unit) for a, b in zip(one.curves, other.curves, strict=False)]
    same = [cross[0] for cross in by_seed if cross and cross[2] == first_leads]
    independent = one.design.pretrainings == other.design.pretrainings == len(by_seed) == len(same)
    low, high = intervals.mean_interval(same) if independent else (nan, nan)
    low = max(low, 0.0) if independent else nan
    leaders = (other.label, one.label) if first_leads else (one.label, other.label)
    return (one.task, one.arm, other.arm, one.label, other.label, unit, at, score, low, high, *leaders)


def _mean(path: Path, unit: str) -> Curve:
    """Mean of an arm's curves, point by point, as far as all its seeds go."""
    points, shares = min(len(curve.score) for curve in path.curves), path.design.shares()
    cost = shares @ np.stack([curve.cost[unit][:points] for curve in path.curves])
    return Curve({unit: cost}, shares @ np.stack([curve.score[:points] for curve in path.curves]))


def last_crossing(one: Curve, other: Curve, unit: str) -> tuple[float, float, bool] | None:
    """(cost, score, whether `one` leads afterwards) where the lead changes for the last time; None if it never does."""
    grid = np.unique(np.concatenate([one.cost[unit], other.cost[unit]]))
    if np.isnan(grid).any():
        return None
    ahead = _leads(one, other, unit, grid)
    decided = np.flatnonzero(ahead != 0)
    changes = [(int(a), int(b)) for a, b in pairwise(decided) if (ahead[a] > 0) != (ahead[b] > 0)]
    if not changes:
        return None
    before, after = changes[-1]
    at = float(grid[after])
    if np.isfinite(ahead[[before, after]]).all():
        at = float(np.interp(0.0, np.sort(ahead[[before, after]]), _ordered(grid, ahead, before, after)))
    scores = [score_at(curve, unit, at) for curve in (one, other)]
    return at, float(np.nanmax(scores)), bool(ahead[after] > 0)


def _ordered(grid: NDArray[np.float64], ahead: NDArray[np.float64], before: int, after: int) -> NDArray[np.float64]:
    """The two costs around a crossing, in the order of who is ahead."""
    return grid[[before, after]] if ahead[before] < ahead[after] else grid[[after, before]]


def _leads(one: Curve, other: Curve, unit: str, grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far `one` is ahead in points at every cost of the grid; infinite where only one of them has a score."""
    first, second = (
        np.where(grid < curve.cost[unit][0], nan, np.interp(grid, curve.cost[unit], curve.score))
        for curve in (one, other)
    )
    alone = np.isnan(second).astype(float) - np.isnan(first)  # 1: only `one` has a score; -1: only the other one
    return np.where(alone != 0, np.copysign(np.inf, alone), np.nan_to_num(first - second))


def matched(arms: Sequence[Path]) -> pd.DataFrame:
    """Scores when the same budget is spent, upstream stages included; the budgets are what each arm took in all.

    columns: task, unit, budget, arm, label, score, low, high, best. An arm without a score yet has none.
    """
    rows = []
    for task in by_task(arms):
        for unit in COSTS:
            totals = [float(path.design.shares() @ [curve.cost[unit][-1] for curve in path.curves]) for path in task]
            for budget in sorted({total for total in totals if np.isfinite(total)}):
                cells = [path.over_seeds([score_at(c, unit, budget) for c in path.curves]) for path in task]
                best = np.nanmax([cell[0] for cell in cells] + [-np.inf])
                rows += [(path.task, unit, budget, path.arm, path.label, *cell, cell[0] == best)
                         for path, cell in zip(task, cells, strict=True)]  # fmt: skip
    return pd.DataFrame(rows, columns=["task", "unit", "budget", "arm", "label", "score", "low", "high", "best"])


def pareto(arms: Sequence[Path]) -> pd.DataFrame:
    """Final score and whole cost of every arm; on the front is an arm that no other one beats in both.

    columns: task, arm, label, unit, cost, score, on_front.
    """
    rows = []
    for task in by_task(arms):
        for unit in COSTS:
            cost = np.array([path.design.shares() @ [c.cost[unit][-1] for c in path.curves] for path in task])
            score = np.array([path.final for path in task])
            for path, own, reach in zip(task, cost, score, strict=True):
                beaten = (cost <= own) & (score >= reach) & ((cost < own) | (score > reach))
                on_front = own == own and not beaten.any()  # an unknown cost is on no front
                rows.append((path.task, path.arm, path.label, unit, float(own), float(reach), on_front))
    return pd.DataFrame(rows, columns=["task", "arm", "label", "unit", "cost", "score", "on_front"])
