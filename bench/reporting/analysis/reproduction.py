"""Reproduction of published numbers: reproduced, above, below, or not comparable, and why not.

A published number is one training, with the noise of one seed in it: published standard deviations between seeds say
how much that is (`power`).
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
PUBLISHED_NAMES = {"IN-1k": "ImageNet-1k", "IN-22k": "ImageNet-22k", "IN-21k": "ImageNet-21k"}
EPOCHS_TOLERANCE = 0.02  # share by which epochs may differ and still be called the same


def verdicts(outcomes: Outcomes, comparisons: Sequence[Comparison], guard: Guard,
             rows: Sequence[Published]) -> pd.DataFrame:  # fmt: skip
    """One row for every arm that is linked to a published number. BenchError for a link to a row that is not there.

    verdict: reproduced, above, below, not comparable, not measured; low, high: 95 % interval of the difference.
    """
    scores = {score.arm.planned.id: score for comparison in comparisons for score in comparison.scores}
    verdict_rows = []
    for arm in outcomes.plan.arms:
        if arm.published:
            row = published.by_id(rows, arm.published, f"arm {label_of(arm)}")
            verdict_rows.append(_verdict(outcomes, guard, arm, row, scores.get(arm.id)))
    return pd.DataFrame(verdict_rows, columns=COLUMNS)


def _verdict(outcomes: Outcomes, guard: Guard, arm: PlannedArm, row: Published, score: Score | None) -> tuple:
    noise = power.published_noise(arm.task, arm.metric, arm.size)
    names = (arm.task, arm.id, label_of(arm), row.id)
    seeds = (noise.sd if noise else nan, noise.source if noise else "")
    rest = (row.source, _conditions(row))
    if score is None:
        return (*names, nan, row.value, nan, nan, nan, *seeds, "not measured", "no result yet", *rest)
    measured, difference = score.spread.mean, score.spread.mean - row.value
    conflicts = _conflicts(outcomes, guard, arm, row)
    if conflicts:
        return (*names, measured, row.value, nan, nan, nan, *seeds, "not comparable", conflicts, *rest)
    low, high = _interval(score, difference, noise)
    verdict = "above" if low > 0 else "below" if high < 0 else "reproduced"
    because = f"the interval of the difference, {low:+.2f} to {high:+.2f}, " + (
        "holds 0" if verdict == "reproduced" else "leaves out 0"
    )
    return (*names, measured, row.value, difference, low, high, *seeds, verdict, because, *rest)


def _conditions(row: Published) -> str:
    epochs = f"{row.pretraining_epochs} epochs" if row.pretraining_epochs not in ("", "0") else ""
    size = f"{row.size}, {row.resolution} px"
    return ", ".join(part for part in (row.variant, size, row.pretraining_data, epochs, row.protocol) if part)


def _interval(score: Score, difference: float, noise: power.PublishedNoise | None) -> tuple[float, float]:
    """95 % interval of measured minus published on the same images.

    Both are trainings: ours as often as it was repeated, theirs once. Their standard deviation is ours where we know
    it, else the published one, whichever is larger; without either, the interval of ours over images, which is too
    wide rather than too narrow.
    """
    own = score.spread.sd if score.spread.sd is not None and score.design.pretrainings > 1 else None
    sd = max((value for value in (own, noise.sd if noise else None) if value is not None), default=None)
    if sd is None:
        half = (score.interval.high - score.interval.low) / 2
        return difference - half - ROUNDED, difference + half + ROUNDED
    df = score.design.pretrainings - 1 if own == sd else noise.trainings - 1 if noise else inf
    # 1 for their training, 1/n for ours; a rounding error is uniform in +-ROUNDED, with variance ROUNDED^2 / 3
    variance = sd**2 * (1 + 1 / score.design.pretrainings) + ROUNDED**2 / 3
    low, high = intervals.t_interval(difference, float(np.sqrt(variance)), df)[0]
    return low, high


def _conflicts(outcomes: Outcomes, guard: Guard, arm: PlannedArm, row: Published) -> str:
    """Conditions in which the measured arm differs from the published one, '' for none."""
    pairs = [
        ("task", arm.task, row.task),
        ("metric", arm.metric, row.metric),
        ("size", arm.size, row.size),
        ("resolution", guard.fingerprints[arm.id]["resolution"], str(row.resolution)),
        ("pretraining data", _pretraining_data(outcomes, guard, arm), row.pretraining_data or "not said"),
    ]
    texts = [f"{name} {here} vs {there}" for name, here, there in pairs if here != there and there != "not said"]
    epochs = costs(outcomes, outcomes.arms[arm.id])["pretraining_epochs"]
    if row.pretraining_epochs.replace(".", "").isdigit() and row.pretraining_data not in ("", "none"):
        expected = float(row.pretraining_epochs)
        if not np.isclose(epochs, expected, rtol=EPOCHS_TOLERANCE):
            texts.append(f"pretraining epochs {epochs:g} vs {expected:g}")
    texts += _other_lengths(outcomes, arm)
    return "; ".join([*texts, *guard.reasons[arm.id]])


def _pretraining_data(outcomes: Outcomes, guard: Guard, arm: PlannedArm) -> str:
    """Names of the data before the labels of the task, as published.csv writes them; 'none' without such a stage."""
    seed = min(arm.stages)
    chain = [*outcomes.upstream(arm, seed), outcomes.last_stage(arm, seed)]
    upstream = [run.stage for run in chain[:-1] if run.stage.kind in ("pretrain", "supervised")]
    if not upstream and not any(run.stage.start for run in chain):
        return "none"
    labelled = " with labels" if upstream and all(stage.kind == "supervised" for stage in upstream) else ""
    train = chain[-1].stage.data.get("train")
    names = {PUBLISHED_NAMES.get(part, part) for part in guard.fingerprints[arm.id]["pretraining data"].split(" + ")}
    if len(names) > 1 and train is not None:  # the task's own labels are no pretraining
        names -= {train.dataset, "ADE20K" if train.dataset == "ade20k" else train.dataset}
    return " + ".join(sorted(names)) + labelled


def _other_lengths(outcomes: Outcomes, arm: PlannedArm) -> list[str]:
    """Stages that train for another number of epochs than the method's published recipe."""
    seed = min(arm.stages)
    chain = [*outcomes.upstream(arm, seed), outcomes.last_stage(arm, seed)]
    return [
        f"{run.stage.kind} epochs {here:g} vs {there:g}"
        for run in chain
        for there, here in [run.stage.departures.get("recipe.epochs", (None, None))]
        if isinstance(here, int | float) and isinstance(there, int | float)
    ]
