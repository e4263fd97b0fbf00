"""How scores and losses moved during training, as pandas frames ready to be drawn."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.compare.outcomes import Held, Outcomes
from bench.compare.tables import label_of

AXES = {  # column: what it means, for the axis of a figure
    "epoch": "epochs of the last stage",
    "images": "images seen, upstream included",
    "seconds": "training seconds, upstream included",
}
POINTS = 200  # a curve is thinned to about this many


class Band(NamedTuple):
    """A curve over seeds: mean with the lowest and highest seed, at equal steps."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def convergence(outcomes: Outcomes) -> pd.DataFrame:
    """The headline metric on `val` during the last stage of every finished seed, in long form.

    columns: task, arm, label, seed, step, epoch of the last stage, images and seconds with all upstream stages, value.
    """
    rows = []
    for arm in outcomes.arms.values():
        planned = arm.planned
        for outcome in arm.seeds:
            upstream = outcomes.upstream(planned, outcome.seed)
            images, seconds = (sum(held.number(fact) for held in upstream) for fact in ("images", "seconds"))
            rows += [
                (planned.task, planned.id, label_of(planned), outcome.seed, record.step, record.epoch,
                 images + record.images, seconds + record.seconds, record.value)
                for record in outcomes.own(planned, outcome.seed).run.records()
                if (record.split, record.metric) == ("val", planned.metric)
            ]  # fmt: skip
    columns = ["task", "arm", "label", "seed", "step", "epoch", "images", "seconds", "value"]
    return pd.DataFrame(rows, columns=columns)


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
            for record in held.run.records()
            if record.split == "train" and (record.metric == "loss" or record.metric.endswith("accuracy"))
        ]
    return pd.DataFrame(rows, columns=["stage", "seed", "metric", "step", "epoch", "value"])


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
