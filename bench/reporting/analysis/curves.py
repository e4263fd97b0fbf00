"""How scores and losses moved during training, as pandas frames ready to be drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.reporting.analysis.outcomes import Held, Outcomes, label_of
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
    device_hours with all upstream stages, not-a-number after weights from outside; value.
    Operations include those of teacher and tokenizer.
    """
    rows = []
    for arm in outcomes.arms.values():
        unknown = float("nan") if outcomes.outside(arm.planned) else 0.0  # what weights from outside took
        for outcome in arm.seeds:
            own, upstream = outcomes.own(arm.planned, outcome.seed), outcomes.upstream(arm.planned, outcome.seed)
            before = {fact: unknown + sum(held.number(fact) for held in upstream) for fact in FACTS}
            flops = own.number("flops") / own.number("images")
            devices = own.number("device_seconds") / own.number("seconds")
            names = (arm.planned.task, arm.planned.id, label_of(arm.planned), outcome.seed)
            rows += [
                (*names, record.step, record.epoch, record.images, before["images"] + record.images,
                 before["seconds"] + record.seconds, before["flops"] + flops * record.images,
                 (before["device_seconds"] + devices * record.seconds) / SECONDS_PER_HOUR, record.value)
                for record in own.records()
                if (record.split, record.metric) == ("val", arm.planned.metric) and own.stage.task == arm.planned.task
            ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def pretraining(outcomes: Outcomes) -> pd.DataFrame:
    """Loss and accuracies on training data during tokenizer and pretraining stages, in long form.

    columns: stage ('beit pretrain'), seed, metric, step, epoch, value. A stage that several arms share stands once.
    """
    rows = []
    for held in outcomes.stages.values():
        if held.stage.kind not in ("tokenizer", "pretrain") or held.state != "done":
            continue
        rows += [
            (_stage_name(held), held.stage.seed, record.metric, record.step, record.epoch, record.value)
            for record in held.records()
            if record.split == "train" and (record.metric == "loss" or record.metric.endswith("accuracy"))
        ]
    return pd.DataFrame(rows, columns=["stage", "seed", "metric", "step", "epoch", "value"])


def references(outcomes: Outcomes) -> pd.DataFrame:
    """What others saw of these stages; columns stage, metric, epoch, value, low, high, source, conditions."""
    rows = reference_curves.read(reference_curves.default_path())
    found = {
        (_stage_name(held), metric, one.epoch, one.value, one.low, one.high, one.source, one.conditions): None
        for held in outcomes.stages.values()
        for metric, several in reference_curves.of_stage(held.stage, rows).items()
        for one in several
    }
    columns = ["stage", "metric", "epoch", "value", "low", "high", "source", "conditions"]
    return pd.DataFrame(list(found), columns=columns)


def deviations(outcomes: Outcomes) -> list[str]:
    """A sentence for every run that ended far from what others saw."""
    rows = reference_curves.read(reference_curves.default_path())
    return [
        f"{held.name}: {text}"
        for held in outcomes.stages.values()
        if reference_curves.of_stage(held.stage, rows) and held.state == "done"
        for text in reference_curves.last_deviations(held.stage, _trained(held), rows)
    ]


def _trained(held: Held) -> Iterator[tuple[str, float, float]]:
    """Metric, epoch and value of all that was recorded on training data."""
    records = (record for record in held.records() if record.split == "train")
    return ((record.metric, record.epoch, record.value) for record in records)


def _stage_name(held: Held) -> str:
    variant = f":{held.stage.variant}" if held.stage.variant else ""
    return f"{held.stage.method}{variant} {held.stage.kind}"


def band(curve: pd.DataFrame, axis: str) -> Band:
    """Mean and range over the seeds of one curve, along `axis`, at the steps that all its seeds have."""
    everywhere = curve.groupby("step").filter(lambda at: at["seed"].nunique() == curve["seed"].nunique())
    steps = everywhere.groupby("step", sort=True)
    value = steps["value"]
    thin = np.unique(np.linspace(0, len(steps) - 1, min(POINTS, len(steps))).round().astype(int))
    columns = (steps[axis].mean(), value.mean(), value.min(), value.max())
    return Band(*(column.to_numpy()[thin] for column in columns))
