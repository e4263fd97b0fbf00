"""The one evaluation loop, during training and after it: every image once, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from bench.datasets import Source
from bench.devices import autocast
from bench.files import write_atomic
from bench.loader import Batch, View, load, ready
from bench.metrics import overlap
from bench.objective import Objective
from bench.sampler import Draw
from bench.scoring import Outputs, Scorer, Segmentation, Table, check, joined
from bench.sliding import slide
from bench.spec import Protocol


class Split(NamedTuple):
    """Images to be scored, and how: `window` is the side of the network's input."""

    source: Source
    view: View
    scorer: Scorer
    protocol: Protocol
    window: int
    precision: str = "fp32"
    batch_size: int = 64
    workers: int = 0


class Scores(NamedTuple):
    """Scores of a split in percent, the first being the headline, and the rows they are made of."""

    metrics: dict[str, float]
    table: Table


def evaluate(objective: Objective, split: Split, accelerator: Accelerator, *, logits: bool = False) -> Scores:
    """Score an objective on every image of a split; the result is the same on all processes.

    Before, the metric itself is tried on the first images, with answers known to be right and to be wrong.
    logits: keep them in the table.
    """
    was_training = objective.training
    objective.eval()
    tables = []
    for number, batch in enumerate(batches(split, accelerator)):
        if number == 0:
            check(split.scorer, batch)
        rows = split.scorer.rows(predict(objective, batch, split, accelerator.device), batch)
        tables.append(rows if logits else {name: rows[name] for name in rows if name != "logits"})
    objective.train(was_training)
    table = gather(tables, len(split.source))
    return Scores(split.scorer.summary(table), table)


def batches(split: Split, accelerator: Accelerator) -> Iterator[Batch]:
    """This process's share of a split: every n-th image, from its own number on."""
    mine = list(range(accelerator.process_index, len(split.source), accelerator.num_processes))
    parts = [mine[start : start + split.batch_size] for start in range(0, len(mine), split.batch_size)]
    draws = [[Draw(index, 0, 0, index) for index in part] for part in parts]
    pin = accelerator.device.type == "cuda"
    return load(split.source, split.view, draws, seed=0, workers=split.workers, pin=pin)


def gather(tables: list[Table], images: int) -> Table:
    """The rows of all processes, by image. AssertionError unless every image is there exactly once."""
    whole = joined(list(chain.from_iterable(gather_object([tables]))))
    assert np.array_equal(whole["index"], np.arange(images)), f"of {images} images not each was scored exactly once"
    return whole


@torch.inference_mode()
def predict(objective: Objective, batch: Batch, split: Split, device: torch.device) -> Outputs:
    """Logits by head for a batch. Pictures that are not of the network's size are seen through windows."""
    if not isinstance(batch["image"], Tensor):
        return _one_by_one(objective, batch, split, device)
    batch = ready(batch, device, split.protocol)
    with autocast(device, split.precision):
        if batch["image"].shape[-2:] == (split.window, split.window):
            return objective.predict(batch)
        stride = split.window * 2 // 3  # 341 of 512, as published for ADE20K
        looked = slide(lambda image: _logits(objective, image), batch["image"], window=split.window, stride=stride)
        return {"logits": looked}


def _one_by_one(objective: Objective, batch: Batch, split: Split, device: torch.device) -> Outputs:
    """For pictures of different sizes, which make no one tensor: a list of logits (K, H, W)."""
    single = [{"image": image[None]} for image in batch["image"]]
    return {"logits": [predict(objective, one, split, device)["logits"][0] for one in single]}


def _logits(objective: Objective, images: Tensor) -> Tensor:
    return objective.predict({"image": images})["logits"]


def scored(objective: Objective, split: Split, accelerator: Accelerator) -> Callable[[], dict[str, float]]:
    """A function that scores the objective as it is at that moment, for the training loop."""
    return lambda: evaluate(objective, split, accelerator).metrics


def write_predictions(path: Path, scores: Scores, source: Source, averaged: Scores | None = None) -> None:
    """One row per image as parquet: id, index, and what the scores are made of.

    Classification: label, prediction, correct, top5, loss, logits, prediction_HEAD. Segmentation: intersect, union,
    predicted and labelled pixels of each class. averaged: the scores of the averaged weights, as columns *_ema.
    """
    table = scores.table
    columns: dict[str, Any] = {"id": [source.name(int(index)) for index in table["index"]]}
    columns |= _columns(table)
    if averaged:
        kept = {name: value for name, value in _columns(averaged.table).items() if name not in ("index", "label")}
        columns |= {f"{name}_ema": value for name, value in kept.items() if name != "logits"}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({name: _column(value) for name, value in columns.items()}), sink, compression="zstd")
    write_atomic(path, sink.getvalue().to_pybytes())


def _columns(table: Table) -> dict[str, np.ndarray]:
    if "intersect" in table:
        union = table["predicted"] + table["labelled"] - table["intersect"]
        return {**table, "union": union}
    prediction = table["top5"][:, 0]
    return {**table, "prediction": prediction, "correct": prediction == table["label"]}


def _column(values: Any) -> pa.Array:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    return pa.array(values)


def per_class(split: Split, scores: Scores) -> dict[str, float | None]:
    """IoU of every class by name, in percent, None where it was never seen; nothing for classification."""
    if not isinstance(split.scorer, Segmentation):
        return {}
    iou = overlap(split.scorer.total(scores.table)).iou
    names = split.source.classes if len(split.source.classes) == len(iou) else [str(k) for k in range(len(iou))]
    return {name: None if np.isnan(value) else float(value) for name, value in zip(names, iou, strict=True)}
