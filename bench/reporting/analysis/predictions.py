"""Stored predictions of an evaluation, image by image: the columns of predictions.parquet that a comparison needs.

Letters: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bench.errors import BenchError

HEADS, AVERAGED = "prediction_", "correct_ema"


class ImageRows(NamedTuple):
    """Per-image results, sorted by id. hits, totals (N, C) make the headline score; the others only if stored.

    measures: right answers (N,) by name of the score they make: top1_ema, top1_HEAD.
    confidence: highest probability (N,).
    """

    ids: tuple[str, ...]
    hits: NDArray[np.float64]
    totals: NDArray[np.float64]
    labels: NDArray[np.int64] | None = None
    confidence: NDArray[np.float64] | None = None
    measures: dict[str, NDArray[np.float64]] = {}  # noqa: RUF012 - never written to


def read(path: Path, metric: str) -> ImageRows:
    """The per-image results of an evaluation; BenchError when they cannot be read, or hold an image twice."""
    needed = ["id", "correct"] if metric == "top1" else ["id", "intersect", "union"]
    try:
        with pq.ParquetFile(path) as file:  # opened once; pandas would open it again, at twice the time
            columns = [*needed, *_optional(file.schema_arrow.names, metric)]
            frame = file.read(columns=columns, use_threads=False).to_pandas()[columns]
    except (OSError, ValueError, KeyError) as error:
        raise BenchError(f"{path.name} cannot be read: {type(error).__name__}") from None
    frame = frame.assign(id=frame["id"].astype(str)).sort_values("id", kind="stable")
    if frame.empty or frame["id"].duplicated().any():
        raise BenchError(f"{path.name} holds no image, or one image twice")
    ids = tuple(frame["id"])
    if metric != "top1":
        hits, totals = (np.stack(frame[name].to_list()).astype(np.float64) for name in needed[1:])
        return ImageRows(ids, hits, totals)
    hits = frame["correct"].to_numpy(np.float64)[:, None]
    labels = frame["label"].to_numpy(np.int64) if "label" in frame else None
    return ImageRows(ids, hits, np.ones_like(hits), labels, _confidence(frame), _measures(frame))


def neighbours(path: Path, ids: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Right answers of a probe's k-nearest-neighbour classifier on these images, as knn_top1; {} without the file."""
    if not path.exists():
        return {}
    frame = pd.read_parquet(path, columns=["id", "correct"])
    frame = frame.assign(id=frame["id"].astype(str)).set_index("id")
    usable = frame.index.is_unique and set(ids) <= set(frame.index)
    return {"knn_top1": frame.loc[list(ids), "correct"].to_numpy(np.float64)} if usable else {}


def _optional(stored: list[str], metric: str) -> list[str]:
    """The stored columns that further scores are made from, beside the headline score."""
    if metric != "top1":
        return []
    heads = [name for name in stored if name.startswith(HEADS) and not name.endswith("_ema")]
    return [name for name in ("label", "confidence", AVERAGED, *heads) if name in stored]


def _confidence(frame: pd.DataFrame) -> NDArray[np.float64] | None:
    return frame["confidence"].to_numpy(np.float64) if "confidence" in frame else None


def _measures(frame: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
    averaged = {"top1_ema": frame[AVERAGED].to_numpy(np.float64)} if AVERAGED in frame else {}
    heads = [name for name in frame.columns if str(name).startswith(HEADS)]
    right = {f"top1_{name.removeprefix(HEADS)}": frame[name] == frame["label"] for name in heads if "label" in frame}
    return averaged | {name: column.to_numpy(np.float64) for name, column in right.items()}
