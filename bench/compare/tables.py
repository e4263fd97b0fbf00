"""The numbers of a report as pandas tables, and the same numbers as rows of text for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.compare.differences import MEANING, Comparison, Difference, Score
from bench.compare.notes import Notes
from bench.compare.outcomes import Arm, Held, Outcomes
from bench.compare.text import MINUS, NO_VALUE, PLUS_MINUS, amount, escaped, metric_name, p_value, points
from bench.spec import PlannedArm

SECONDS_PER_HOUR = 3600.0
ALIKE = "\u2248"  # behind a score or a difference: not distinguishable
LEARNED = ("pretrain", "supervised")  # upstream stages that train the backbone itself


def main(outcomes: Outcomes, comparisons: Sequence[Comparison], notes: Notes) -> pd.DataFrame:
    """One row per arm and task, with or without a score: what it reached, how sure that is, what it cost."""
    rows = []
    for comparison in comparisons:
        found = {score.arm.planned.id: score for score in comparison.scores}
        alike, highest = comparison.like_best(), comparison.highest()
        for arm in outcomes.of_task(comparison.task):
            score = found.get(arm.planned.id)
            rows.append(
                {
                    **_names(arm.planned),
                    **_score(arm, score, comparison),
                    "best": arm.planned.id in highest,
                    "like_best": arm.planned.id in alike,
                    **costs(outcomes, arm),
                    "fidelity": arm.planned.fidelity,
                    "reportable": reportable(outcomes, arm.planned),
                    "notes": " ".join(str(number) for number in notes.of_arm[arm.planned.id]),
                }
            )
    return pd.DataFrame(rows)


def _names(arm: PlannedArm) -> dict[str, Any]:
    fields = ("task", "id", "label", "method", "variant", "size", "budget", "metric")
    return {("arm" if field == "id" else field): getattr(arm, field) for field in fields}


def _score(arm: Arm, score: Score | None, comparison: Comparison) -> dict[str, Any]:
    low, high = score.interval if score else (math.nan, math.nan)
    return {
        "score": score.spread.mean if score else math.nan,
        "sd": score.spread.sd if score and score.spread.sd is not None else math.nan,
        "seeds": len(arm.seeds),
        "seeds_planned": len(arm.planned.stages),
        "low": low,
        "high": high,
        "images_scored": comparison.images if score else 0,
    }


def costs(outcomes: Outcomes, arm: Arm) -> dict[str, float]:
    """What an arm's training took, mean over its finished seeds; upstream stages count in full for every arm.

    images: seen by the network, counted with repetition. device_hours: seconds of training times devices.
    """
    chains = [(outcomes.own(arm.planned, s.seed), outcomes.upstream(arm.planned, s.seed)) for s in arm.seeds]
    learned = [[held for held in upstream if held.stage.kind in LEARNED] for _, upstream in chains]

    def mean(values: Callable[[Held, list[Held]], float]) -> float:
        return float(np.mean([values(own, upstream) for own, upstream in chains])) if chains else math.nan

    def both(fact: str, unit: float = 1.0) -> tuple[float, float]:
        own = mean(lambda last, _: last.number(fact)) / unit
        return own, own + mean(lambda _, upstream: sum(held.number(fact) for held in upstream)) / unit

    images, hours = both("images"), both("device_seconds", SECONDS_PER_HOUR)
    epochs = [sum(held.number("epochs") for held in stages) for stages in learned]
    return {
        "parameters": mean(lambda own, _: _parameters(own)),
        "pretraining_epochs": float(np.mean(epochs)) if epochs else math.nan,
        "images_own": images[0],
        "images_all": images[1],
        "device_hours_own": hours[0],
        "device_hours_all": hours[1],
    }


def _parameters(own: Held) -> float:
    """Of the network that is scored: all that its stage trains, so no teacher; for a probe the frozen trunk too."""
    return own.number("parameters" if own.stage.kind == "probe" else "trainable")


def reportable(outcomes: Outcomes, arm: PlannedArm) -> bool:
    """Whether no stage of the arm was limited to a part of its data by --limit."""
    keys = {key for roles in arm.stages.values() for key in roles.values()}
    return all(data.limit is None for key in keys for data in outcomes.plan.stages[key].data.values())


def main_rows(frame: pd.DataFrame) -> list[dict[str, str]]:
    """The rows of `main` for people; bold: best, and the sign for those that cannot be told apart from it."""
    return [_main_row(row) for row in frame.to_dict("records")]


def _main_row(row: Mapping[Any, Any]) -> dict[str, str]:
    notes = row["notes"].split()
    pairs = [f"{amount(row[f'{fact}_own'])} / {amount(row[f'{fact}_all'])}" for fact in ("images", "device_hours")]
    epochs = row["pretraining_epochs"]
    return {
        "arm": escaped(row["label"] or row["arm"]),
        f"{metric_name(row['metric'])} % \u2191": shown_score(row),
        "95 % interval": NO_VALUE if math.isnan(row["low"]) else shown_interval((row["low"], row["high"])),
        "parameters": amount(row["parameters"]),
        "pretraining epochs": "0" if epochs == 0 else amount(epochs),
        "images seen: own / with upstream": pairs[0],
        "device-hours: own / with upstream": pairs[1],
        "fidelity": row["fidelity"],
        "departures": ", ".join(f"[{n}](#note-{n})" for n in notes) or "none",
    }


def shown_interval(interval: tuple[float, float]) -> str:
    """'70.1 to 73.2', with two decimals."""
    return f"{interval[0]:.2f} to {interval[1]:.2f}"


def shown_score(row: Mapping[Any, Any]) -> str:
    """'**71.20 +- 0.31** (2)': mean, sd and number of seeds."""
    if math.isnan(row["score"]):
        return f"no result ({row['seeds']} of {row['seeds_planned']})"
    text = f"{row['score']:.2f}" + ("" if math.isnan(row["sd"]) else f" {PLUS_MINUS} {row['sd']:.2f}")
    planned = "" if row["seeds"] == row["seeds_planned"] else f" of {row['seeds_planned']}"
    mark = "" if row["reportable"] else " (not reportable)"
    shown = f"**{text}**" if row["best"] else f"{text} {ALIKE}" if row["like_best"] else text
    return f"{shown} ({row['seeds']}{planned}){mark}"


def extra(outcomes: Outcomes) -> pd.DataFrame:
    """Every other score of the evaluations, in long form: task, arm, metric, mean, sd, seeds."""
    rows = []
    for arm in outcomes.arms.values():
        names = dict.fromkeys(name for outcome in arm.seeds for name in sorted(outcome.metrics))
        for name in (name for name in names if name != arm.planned.metric):
            values = [outcome.metrics[name] for outcome in arm.seeds if name in outcome.metrics]
            sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
            label = arm.planned.label or arm.planned.id
            rows.append((arm.planned.task, arm.planned.id, label, name, float(np.mean(values)), sd, len(values)))
    return pd.DataFrame(rows, columns=["task", "arm", "label", "metric", "mean", "sd", "seeds"])


def extra_rows(frame: pd.DataFrame, task: str) -> list[dict[str, str]]:
    """Other scores of a task, an arm per row and a metric per column."""
    here = frame[frame["task"] == task]
    metrics = sorted(here["metric"].unique())
    rows = []
    for _, own in here.groupby("arm", sort=False):
        values = {row["metric"]: row for row in own.to_dict("records")}
        cells = {metric_name(m): _mean_and_sd(values[m]) if m in values else NO_VALUE for m in metrics}
        rows.append({"arm": escaped(own["label"].iloc[0]), **cells})
    return rows


def _mean_and_sd(row: Mapping[Any, Any]) -> str:
    decimals = 3 if row["metric"].startswith("loss") else 2
    sd = "" if math.isnan(row["sd"]) else f" {PLUS_MINUS} {row['sd']:.{decimals}f}"
    return f"{row['mean']:.{decimals}f}{sd}"


def matrix_rows(comparison: Comparison) -> list[dict[str, str]]:
    """Differences of every pair: the arm of the row minus the arm of the column, in points, with 95 % intervals."""
    names = {score.arm.planned.id: escaped(label_of(score.arm.planned)) for score in comparison.scores}
    return [
        {
            f"row {MINUS} column": names[first],
            **{names[second]: "" if first == second else _cell(comparison.between(first, second)) for second in names},
        }
        for first in names
    ]


def label_of(arm: PlannedArm) -> str:
    """What an arm is called in reports."""
    return arm.label or arm.id


def _cell(found: Difference) -> str:
    low, high = found.interval
    text = f"{points(found.value)} [{points(low)}, {points(high)}]"
    return f"**{text}**" if found.told_apart else f"{text} {ALIKE}"


def pair_rows(comparison: Comparison) -> list[dict[str, str]]:
    """The tests behind every difference."""
    names = {score.arm.planned.id: escaped(label_of(score.arm.planned)) for score in comparison.scores}
    return [
        {
            "pair": f"{names[found.first]} {MINUS} {names[found.second]}",
            "difference": points(found.value),
            "bootstrap": p_value(found.p),
            "after Holm": p_value(found.p_adjusted),
            "exact McNemar by seed": _mcnemar(found),
            "retraining noise": NO_VALUE if found.by_retraining is None else f"{found.by_retraining:.2f}",
            "verdict": MEANING[found.verdict],
        }
        for found in comparison.differences
    ]


def _mcnemar(found: Difference) -> str:
    tests = [f"{seed}: {d.first_only}/{d.second_only}, {p_value(d.p)}" for seed, d in sorted(found.by_seed.items())]
    return "; ".join(tests) or NO_VALUE
