"""Charts as data: scores, convergence, costs and the curves of pretraining.

`matplotlib_charts` draws them into files, `svg` into the page; neither computes a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.reporting.analysis import curves
from bench.reporting.analysis.comparisons import Comparison
from bench.reporting.analysis.findings import Findings
from bench.reporting.analysis.outcomes import Outcomes, label_of
from bench.reporting.formatting import escaped, metric_name, slug

NOTHING = np.empty(0)
COSTS = {"images_all": "images seen, upstream included", "device_hours_all": "device-hours, upstream included",
         "flops_all": "FLOPs, upstream included"}  # fmt: skip


class Bar(NamedTuple):
    """An arm on a scale: its score with the interval, and single seeds."""

    label: str
    place: int  # of the arm in the plan; gives its colour
    value: float
    low: float
    high: float
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """A curve with its band; a single point is a mark. `lead`: dotted from zero up to its first point."""

    label: str
    place: int  # of the arm in the plan; -1: no arm of the plan
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    lead: bool = False


class Panel(NamedTuple):
    """Curves or marks over common axes. `reference`: published curves, drawn behind them."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    reference: tuple[Line, ...] = ()


class Chart(NamedTuple):
    """A figure of either bars or panels. `caption` is marked text."""

    name: str
    caption: str
    x_label: str = ""
    bars: tuple[Bar, ...] = ()
    panels: tuple[Panel, ...] = ()


def all_charts(findings: Findings) -> list[Chart]:
    """Every chart of a report, in reading order. Charts without data are left out."""
    places, table = _places(findings.outcomes), findings.table
    charts = []
    for comparison in findings.comparisons:
        curve = findings.convergence[findings.convergence["task"] == comparison.task]
        charts += [
            *([_scores(comparison, places)] if comparison.scores else []),
            *([_convergence(curve, comparison, places)] if not curve.empty else []),
            *_costs(table[table["task"] == comparison.task], comparison, places),
        ]
    pretraining = curves.pretraining(findings.outcomes)
    return charts if pretraining.empty else [*charts, _pretraining(pretraining, findings.reference_curves)]


def _places(outcomes: Outcomes) -> dict[str, int]:
    """Place of every label in the plan: an arm has one colour in all figures."""
    labels = dict.fromkeys(label_of(arm) for arm in outcomes.plan.arms)
    return {name: place for place, name in enumerate(labels)}


def _scores(comparison: Comparison, places: Mapping[str, int]) -> Chart:
    """Mean, interval and single seeds of every arm of a task."""
    bars = []
    for score in comparison.scores:
        name = label_of(score.arm.planned)
        seeds = tuple(outcome.metrics[comparison.metric] for outcome in score.arm.seeds)
        bars.append(Bar(name, places[name], score.spread.mean, *score.interval, seeds))
    return Chart(
        f"scores-{slug(comparison.task)}",
        "Bar: 95 % interval over images. Upright line: mean over seeds. Circles: single seeds.",
        x_label=f"{metric_name(comparison.metric)} on {comparison.task} (%)",
        bars=tuple(bars),
    )


def _convergence(frame: pd.DataFrame, comparison: Comparison, places: Mapping[str, int]) -> Chart:
    """The headline metric against what training took."""
    y_label = f"{metric_name(comparison.metric)} on {comparison.task} (%)"
    panels = [
        Panel("", meaning, y_label if axis == "epoch" else "",
              tuple(_line(curve, axis, places) for _, curve in frame.groupby("arm", sort=False)
                    if curve[axis].notna().all()))
        for axis, meaning in curves.AXES.items()
        if (frame[axis] > 0).any()
    ]  # fmt: skip
    caption = (
        f"{metric_name(comparison.metric)} on {escaped(comparison.task)} while training. Line: mean over seeds; band: "
        "lowest to highest seed. Dotted: upstream stages (tokenizer, teacher, pretraining), before the first score."
    )
    if frame["images"].isna().any():
        caption += " Not drawn where upstream counts: arms from weights from outside, since what those took is unknown."
    return Chart(f"convergence-{slug(comparison.task)}", caption, panels=tuple(panels))


def _line(curve: pd.DataFrame, axis: str, places: Mapping[str, int]) -> Line:
    name, band = str(curve["label"].iloc[0]), curves.band(curve, axis)
    return Line(name, places[name], band.x, band.mean, band.low, band.high, lead=axis != "epoch")


def _costs(table: pd.DataFrame, comparison: Comparison, places: Mapping[str, int]) -> list[Chart]:
    """Score against cost, a mark per arm, where at least two arms have both."""
    panels: list[Panel] = []
    for column, meaning in COSTS.items():
        if column in table and (arms := table[table["score"].notna() & (table[column] > 0)]).shape[0] > 1:
            lines = tuple(_mark(row, row[column], places) for row in arms.to_dict("records"))
            panels.append(Panel("", meaning, "" if panels else f"{metric_name(comparison.metric)} (%)", lines))
    caption = "Score against cost. Upright bars: 95 % interval over images. Up and to the left is better."
    return [Chart(f"cost-{slug(comparison.task)}", caption, panels=tuple(panels))] if panels else []


def _mark(row: Mapping[Any, Any], cost: float, places: Mapping[str, int]) -> Line:
    name = str(row["label"] or row["arm"])
    x, y, low, high = (np.array([float(value)]) for value in (cost, row["score"], row["low"], row["high"]))
    return Line(name, places[name], x, y, low, high)


def _pretraining(frame: pd.DataFrame, reference: pd.DataFrame) -> Chart:
    """A panel for every pretraining stage and quantity: losses of different methods have no common scale."""
    panels = []
    for (stage, metric), curve in frame.groupby(["stage", "metric"], sort=False):
        band = curves.band(curve, "epoch")
        line = Line(str(stage), 0, band.x, band.mean, band.low, band.high)
        title = f"{stage}: {str(metric).replace('_', ' ')}"
        panels.append(Panel(title, "epochs", "", (line,), _reference(reference, str(stage), str(metric), band.x)))
    has_reference = any(panel.reference for panel in panels)
    caption = "Training before the labels, on training data. Line: mean over seeds; band: lowest to highest seed." + (
        " Grey: what the authors published, with the band in which it is expected." if has_reference else ""
    )
    return Chart("pretraining", caption, panels=tuple(panels))


def _reference(frame: pd.DataFrame, stage: str, metric: str, x: np.ndarray) -> tuple[Line, ...]:
    """The published curve of a stage and quantity, up to 5 % beyond the end of this training."""
    if frame.empty or not len(x):
        return ()
    curve = frame[(frame["stage"] == stage) & (frame["metric"] == metric) & (frame["epoch"] <= 1.05 * x.max())]
    curve = curve.sort_values("epoch")
    if curve.empty:
        return ()
    return (Line("published", -1, *(curve[name].to_numpy(float) for name in ("epoch", "value", "low", "high"))),)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`: 1, 2 or 5 times a power of ten apart."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]  # 3 * 0.1 is 0.3, not 0.30000000000000004
