"""Per-image predictions of an evaluation as predictions.parquet, and scores per class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.data.source import Source
from bench.evaluation.loop import EvalSplit, Scores
from bench.evaluation.metrics import hits, overlap
from bench.evaluation.scorers import Segmentation, Table, true_labels
from bench.files import write_atomic


def write_predictions(path: Path, scores: Scores, source: Source, ema: Scores | None = None) -> None:
    """Write one row per image as parquet: id, index, and what the scores are computed from.

    Classification: label, prediction, correct, top5, loss, logits, prediction_HEAD. Segmentation: intersect, union,
    predicted and labelled pixels of each class. ema: the scores of the EMA weights, as columns *_ema.
    AssertionError when two images have the same id.
    """
    table = scores.table
    columns: dict[str, Any] = {"id": [source.name(int(index)) for index in table["index"]]}
    assert len(set(columns["id"])) == len(columns["id"]), "two images have the same id"
    columns |= _columns(table)
    if ema:
        shared = ("index", "label", "logits")  # the same for both, or too large to be stored twice
        columns |= {f"{name}_ema": value for name, value in _columns(ema.table).items() if name not in shared}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({name: _column(value) for name, value in columns.items()}), sink, compression="zstd")
    write_atomic(path, sink.getvalue().to_pybytes())


def _columns(table: Table) -> dict[str, np.ndarray]:
    if "intersect" in table:
        union = table["predicted"] + table["labelled"] - table["intersect"]
        return {**table, "union": union}
    prediction = table["top5"][:, 0]
    return {**table, "prediction": prediction, "correct": hits(table["top5"][:, :1], true_labels(table))}


def _column(values: Any) -> pa.Array:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    return pa.array(values)


def per_class(split: EvalSplit, scores: Scores) -> dict[str, float | None]:
    """IoU of every class by name, in percent, None where it was never seen; nothing for classification."""
    if not isinstance(split.scorer, Segmentation):
        return {}
    iou = overlap(split.scorer.total(scores.table)).iou
    names = split.source.classes if len(split.source.classes) == len(iou) else [str(k) for k in range(len(iou))]
    return {name: None if np.isnan(value) else float(value) for name, value in zip(names, iou, strict=True)}
