"""Measured beside published: is a number reproduced, above, below, or not comparable, and why not.

A published number is one training, so its own luck is in it: known spreads of whole trainings say how much (`power`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nan

import numpy as np
import pandas as pd

from bench.config.stage import PlannedArm
from bench.reporting import published
from bench.reporting.analysis.comparability import Guard
from bench.reporting.analysis.comparisons import Comparison, Score
from bench.reporting.analysis.outcomes import Outcomes, label_of
from bench.reporting.analysis.tables import costs
from bench.reporting.published import Published
from bench.stats import intervals, power

COLUMNS = [
    "task", "arm", "label", "published_id", "measured", "published", "difference", "low", "high", "noise",
    "noise_source", "verdict", "why", "source", "conditions",
]  # fmt: skip
ROUNDED = 0.05  # points by which a number printed with one decimal may be off
NAMES = {"IN-1k": "ImageNet-1k", "IN-22k": "ImageNet-22k", "IN-21k": "ImageNet-21k"}
EPOCHS = 0.02  # share by which epochs may differ and still be called the same


def verdicts(outcomes: Outcomes, comparisons: Sequence[Comparison], guard: Guard,
             rows: Sequence[Published]) -> pd.DataFrame:  # fmt: skip
    """One row for every arm that is linked to a published number. BenchError for a link to a row that is not there.

    verdict: reproduced, above, below, not comparable, not measured; low, high: 95 % interval of the difference.
    """
    found = {score.arm.planned.id: score for comparison in comparisons for score in comparison.scores}
    told = []
    for arm in outcomes.plan.arms:
        if arm.published:
            row = published.by_id(rows, arm.published, f"arm {label_of(arm)}")
            told.append(_verdict(outcomes, guard, arm, row, found.get(arm.id)))
    return pd.DataFrame(told, columns=COLUMNS)


def _verdict(outcomes: Outcomes, guard: Guard, arm: PlannedArm, row: Published, score: Score | None) -> tuple:
    noise = power.known_noise(arm.task, arm.metric, arm.size)
    names = (arm.task, arm.id, label_of(arm), row.id)
    conditions = _conditions(row)
    told = (noise.sd if noise else nan, noise.source if noise else "")
    if score is None:
        return (*names, nan, row.value, nan, nan, nan, *told, "not measured", "no result yet", row.source, conditions)
    measured, difference = score.spread.mean, score.spread.mean - row.value
    why = _why(outcomes, guard, arm, row)
    if why:
        return (*names, measured, row.value, nan, nan, nan, *told, "not comparable", why, row.source, conditions)
    low, high = _interval(score, difference, noise)
    verdict = "above" if low > 0 else "below" if high < 0 else "reproduced"
    because = f"the interval of the difference, {low:+.2f} to {high:+.2f}, " + (
        "holds 0" if verdict == "reproduced" else "leaves out 0"
    )
    return (*names, measured, row.value, difference, low, high, *told, verdict, because, row.source, conditions)


def _conditions(row: Published) -> str:
    epochs = f"{row.pretraining_epochs} epochs" if row.pretraining_epochs not in ("", "0") else ""
    size = f"{row.size}, {row.resolution} px"
    return ", ".join(part for part in (row.variant, size, row.pretraining_data, epochs, row.protocol) if part)


def _interval(score: Score, difference: float, noise: power.PublishedNoise | None) -> tuple[float, float]:
    """95 % interval of measured minus published on the same images.

    Both are trainings: ours as often as it was repeated, theirs once. Its spread is ours where we know it, else the
    published one, whichever is larger; without either, that of the images, which is too wide rather than too narrow.
    """
    seen = score.spread.sd if score.spread.sd is not None and score.design.pretrainings > 1 else None
    sd = max((value for value in (seen, noise.sd if noise else None) if value is not None), default=None)
    if sd is None:
        half = (score.interval.high - score.interval.low) / 2
        return difference - half - ROUNDED, difference + half + ROUNDED
    freedom = score.design.pretrainings - 1 if seen == sd else noise.trainings - 1 if noise else inf
    variance = sd**2 * (1 + 1 / score.design.pretrainings) + ROUNDED**2 / 3
    low, high = intervals.student(difference, float(np.sqrt(variance)), freedom)[0]
    return low, high


def _why(outcomes: Outcomes, guard: Guard, arm: PlannedArm, row: Published) -> str:
    """Conditions that the measured row does not share with the published one."""
    found = guard.prints[arm.id]
    pairs = [
        ("task", arm.task, row.task),
        ("metric", arm.metric, row.metric),
        ("size", arm.size, row.size),
        ("resolution", found["resolution"], str(row.resolution)),
        ("pretraining data", _pretraining(outcomes, guard, arm), row.pretraining_data or "not said"),
    ]
    different = [f"{name} {here} vs {there}" for name, here, there in pairs if here != there and there != "not said"]
    epochs = costs(outcomes, outcomes.arms[arm.id])["pretraining_epochs"]
    if row.pretraining_epochs.replace(".", "").isdigit() and row.pretraining_data not in ("", "none"):
        asked = float(row.pretraining_epochs)
        if not np.isclose(epochs, asked, rtol=EPOCHS):
            different.append(f"pretraining epochs {epochs:g} vs {asked:g}")
    different += _shortened(outcomes, arm)
    return "; ".join([*different, *guard.reasons[arm.id]])


def _pretraining(outcomes: Outcomes, guard: Guard, arm: PlannedArm) -> str:
    """Names of the data before the labels of the task, as published.csv writes them; 'none' without such a stage."""
    seed = min(arm.stages)
    upstream = [held.stage for held in outcomes.upstream(arm, seed) if held.stage.kind in ("pretrain", "supervised")]
    outside = any(held.stage.start for held in (*outcomes.upstream(arm, seed), outcomes.own(arm, seed)))
    if not upstream and not outside:
        return "none"
    labelled = " with labels" if upstream and all(stage.kind == "supervised" for stage in upstream) else ""
    own = outcomes.own(arm, seed).stage.data.get("train")
    task_data = {NAMES.get(part, part) for part in guard.prints[arm.id]["pretraining data"].split(" + ")}
    if len(task_data) > 1 and own is not None:  # the task's own labels are no pretraining
        task_data -= {own.dataset, "ADE20K" if own.dataset == "ade20k" else own.dataset}
    return " + ".join(sorted(task_data)) + labelled


def _shortened(outcomes: Outcomes, arm: PlannedArm) -> list[str]:
    """Trainings of another length than the method's published recipe."""
    seed = min(arm.stages)
    chain = [*outcomes.upstream(arm, seed), outcomes.own(arm, seed)]
    return [
        f"{held.stage.kind} epochs {here:g} vs {there:g}"
        for held in chain
        for there, here in [held.stage.departures.get("recipe.epochs", (None, None))]
        if isinstance(here, int | float) and isinstance(there, int | float)
    ]
