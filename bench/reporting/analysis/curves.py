"""Training curves of scores and losses, as pandas frames ready to be drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.reporting.analysis.outcomes import Outcomes, StageRun, label_of
from bench.runs import reference_curves

AXES = {  # column: what it means, for the axis of a figure
    "epoch": "epochs of the last stage",
    "images": "images seen, upstream included",
    "flops": "FLOPs, upstream included",
    "device_hours": "device-hours, upstream included",
}
COLUMNS = [
    "task", "arm", "label", "seed", "step", "epoch", "images_own", "images", "seconds", "flops", "device_hours", "value"
]  # fmt: skip
FACTS = ("images", "seconds", "flops", "device_seconds")  # of a stage's results
SECONDS_PER_HOUR = 3600.0
POINTS = 200  # a curve is thinned to about this many


class Band(NamedTuple):
    """A curve over seeds: mean with the lowest and highest seed, at equal steps."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def convergence(outcomes: Outcomes) -> pd.DataFrame:
    """The headline metric on `val` during the last stage of every finished seed, in long form.

    columns: task, arm, label, seed, step, epoch and images_own of the last stage; images, seconds, flops and
    device_hours with all upstream stages, not-a-number after pretrained weights; value.
    FLOPs include those of teacher and tokenizer.
    """
    rows = []
    for arm in outcomes.arms.values():
        # nobody counted what the training of pretrained weights took: NaN makes every sum with it unknown
        base = float("nan") if outcomes.pretrained_weights(arm.planned) else 0.0
        for result in arm.seeds:
            last, upstream = outcomes.last_stage(arm.planned, result.seed), outcomes.upstream(arm.planned, result.seed)
            before = {fact: base + sum(run.number(fact) for run in upstream) for fact in FACTS}
            flops = last.number("flops") / last.number("images")
            devices = last.number("device_seconds") / last.number("seconds")
            names = (arm.planned.task, arm.planned.id, label_of(arm.planned), result.seed)
            rows += [
                (*names, record.step, record.epoch, record.images, before["images"] + record.images,
                 before["seconds"] + record.seconds, before["flops"] + flops * record.images,
                 (before["device_seconds"] + devices * record.seconds) / SECONDS_PER_HOUR, record.value)
                for record in last.records()
                if (record.split, record.metric) == ("val", arm.planned.metric) and last.stage.task == arm.planned.task
            ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def pretraining(outcomes: Outcomes) -> pd.DataFrame:
    """Loss and accuracies on training data during tokenizer and pretraining stages, in long form.

    columns: stage ('beit pretrain'), seed, metric, step, epoch, value. A stage that several arms share stands once.
    """
    rows = []
    for run in outcomes.stages.values():
        if run.stage.kind not in ("tokenizer", "pretrain") or run.state != "done":
            continue
        rows += [
            (_stage_name(run), run.stage.seed, record.metric, record.step, record.epoch, record.value)
            for record in run.records()
            if record.split == "train" and (record.metric == "loss" or record.metric.endswith("accuracy"))
        ]
    return pd.DataFrame(rows, columns=["stage", "seed", "metric", "step", "epoch", "value"])


def references(outcomes: Outcomes) -> pd.DataFrame:
    """Reference curves of these stages; columns stage, metric, epoch, value, low, high, source, conditions."""
    published = reference_curves.read(reference_curves.default_path())
    rows = {  # a dict: seeds of one stage have the same reference, which stands once
        (
            _stage_name(run),
            metric,
            point.epoch,
            point.value,
            point.low,
            point.high,
            point.source,
            point.conditions,
        ): None
        for run in outcomes.stages.values()
        for metric, points in reference_curves.of_stage(run.stage, published).items()
        for point in points
    }
    columns = ["stage", "metric", "epoch", "value", "low", "high", "source", "conditions"]
    return pd.DataFrame(list(rows), columns=columns)


def deviations(outcomes: Outcomes) -> list[str]:
    """A sentence for every run that ended far from its reference curve."""
    published = reference_curves.read(reference_curves.default_path())
    return [
        f"{run.name}: {text}"
        for run in outcomes.stages.values()
        if reference_curves.of_stage(run.stage, published) and run.state == "done"
        for text in reference_curves.last_deviations(run.stage, _training_values(run), published)
    ]


def _training_values(run: StageRun) -> Iterator[tuple[str, float, float]]:
    """Metric, epoch and value of all that was recorded on training data."""
    records = (record for record in run.records() if record.split == "train")
    return ((record.metric, record.epoch, record.value) for record in records)


def _stage_name(run: StageRun) -> str:
    variant = f":{run.stage.variant}" if run.stage.variant else ""
    return f"{run.stage.method}{variant} {run.stage.kind}"


def band(curve: pd.DataFrame, axis: str) -> Band:
    """Mean and range over the seeds of one curve, along `axis`, at the steps that all its seeds have."""
    everywhere = curve.groupby("step").filter(lambda at: at["seed"].nunique() == curve["seed"].nunique())
    steps = everywhere.groupby("step", sort=True)
    value = steps["value"]
    thin = np.unique(np.linspace(0, len(steps) - 1, min(POINTS, len(steps))).round().astype(int))
    columns = (steps[axis].mean(), value.mean(), value.min(), value.max())
    return Band(*(column.to_numpy()[thin] for column in columns))
