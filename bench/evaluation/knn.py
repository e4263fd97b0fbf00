"""k-nearest-neighbour accuracy of frozen features, with weighted votes: class separation without training.

Source: Wu et al., arXiv 1805.01978, section 3.4; k = 20 and temperature 0.07 as is usual for Vision Transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from bench.data.source import Source
from bench.evaluation.loop import EvalSplit, batches, gather
from bench.evaluation.metrics import accuracy
from bench.files import write_atomic
from bench.launch.distributed import autocast
from bench.pipeline.dataloader import move_and_normalise

NEIGHBOURS, TEMPERATURE = 20, 0.07
CHUNK = 256  # images compared with all others at once


@dataclass(frozen=True, slots=True)
class NeighbourPredictions:
    """The classes that neighbours voted for, and the true ones, of every image in order: (N,) each."""

    prediction: np.ndarray
    label: np.ndarray

    @property
    def top1(self) -> float:
        """Accuracy in percent."""
        return accuracy(self.prediction[:, None], self.label, 1)

    def write(self, path: Path, source: Source) -> None:
        """One row per image as parquet: id, label, prediction, correct."""
        ids = [source.name(index) for index in range(len(self.label))]
        right = self.prediction == self.label
        table = pa.table({"id": ids, "label": self.label, "prediction": self.prediction, "correct": right})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        write_atomic(path, sink.getvalue().to_pybytes())


def nearest_neighbours(
    objective: Any, train: EvalSplit, val: EvalSplit, accelerator: Accelerator
) -> NeighbourPredictions:
    """Predict the class of every image of `val` by the votes of the 20 most similar images of `train`.

    objective: has `features(batch)`, (B, D).
    """
    features, labels = extract(objective, train, accelerator)
    queries, truth = extract(objective, val, accelerator)
    classes = int(labels.max()) + 1
    predictions = [vote(part, features, labels, classes).argmax(1) for part in queries.split(CHUNK)]
    return NeighbourPredictions(torch.cat(predictions).cpu().numpy(), truth.cpu().numpy())


def vote(
    queries: Tensor,
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Votes for each class (Q, K): every neighbour gives its class exp(cosine / temperature).

    queries (Q, D) and features (n, D) have length 1; labels (n,).
    """
    cosines, nearest = (queries @ features.T).topk(min(neighbours, len(features)), dim=1)  # (Q, k)
    votes = queries.new_zeros(len(queries), classes)
    return votes.scatter_add_(1, labels[nearest], (cosines / temperature).exp())


@torch.inference_mode()
def extract(objective: Any, split: EvalSplit, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """Features of all images of a split, scaled to length 1, (n, D), and their labels (n,), on every process."""
    was_training = objective.training
    objective.eval()
    tables = []
    for batch in batches(split, accelerator):
        with autocast(accelerator.device, split.precision):
            features = objective.features(move_and_normalise(batch, accelerator.device, split.protocol))
        unit = F.normalize(features.float(), dim=1).cpu().numpy()  # fp32, whatever autocast made of them
        tables.append({"index": batch["index"].numpy(), "label": batch["label"].numpy(), "feature": unit})
    objective.train(was_training)
    whole = gather(tables, len(split.source))
    features, labels = (torch.from_numpy(whole[name]).to(accelerator.device) for name in ("feature", "label"))
    return features, labels
