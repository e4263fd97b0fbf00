"""How predictions become rows, one per image, and rows become scores.

A table maps a column's name to an array whose first axis is the images; "index" is always among them.
Letters: B images, K classes, H x W pixels of a label map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from bench.loader import Batch
from bench.metrics import Areas, accuracy, areas, overlap, top_classes
from bench.spec import BenchError

Table = dict[str, np.ndarray]
Outputs = Mapping[str, Any]  # logits by head, (B, K) or (B, K, h, w), or a list of (K, h, w)


class Scorer(Protocol):
    """What scores one kind of task."""

    def rows(self, outputs: Outputs, batch: Batch) -> Table:
        """One row per image of the batch."""
        ...

    def summary(self, table: Table) -> dict[str, float]:
        """Scores of a whole split; the first is the headline."""
        ...

    def oracle(self, batch: Batch, shift: int) -> Outputs:
        """Outputs that answer with the label plus `shift` everywhere."""
        ...


class Classification:
    """top-1 and top-5 accuracy and cross entropy; the accuracy of every head besides. In percent."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def rows(self, outputs: Outputs, batch: Batch) -> Table:
        """label, top5 (B, 5), loss, logits (B, K) float16, and prediction_HEAD for every other head."""
        logits, labels = outputs["logits"].float(), batch["label"].to(outputs["logits"].device)
        self._refuse(batch["index"], labels)
        heads = {f"prediction_{name}": value.argmax(1) for name, value in outputs.items() if name != "logits"}
        columns = {
            "index": batch["index"],
            "label": labels,
            "top5": top_classes(logits, 5),
            "loss": F.cross_entropy(logits, labels, reduction="none"),
            "logits": logits.half(),
            **heads,
        }
        return {name: value.cpu().numpy() for name, value in columns.items()}

    def _refuse(self, indices: Tensor, labels: Tensor) -> None:
        wrong = ((labels < 0) | (labels >= self.classes)).nonzero().flatten().tolist()
        if wrong:
            label, index = int(labels[wrong[0]]), int(indices[wrong[0]])
            raise BenchError(f"image {index} has the label {label}, the model knows 0 to {self.classes - 1}")

    def summary(self, table: Table) -> dict[str, float]:
        labels = table["label"]
        scores = {"top1": accuracy(table["top5"], labels, 1), "top5": accuracy(table["top5"], labels, 5)}
        scores["loss"] = float(table["loss"].astype(np.float64).mean())
        for name in sorted(name for name in table if name.startswith("prediction_")):
            scores[f"top1_{name.removeprefix('prediction_')}"] = accuracy(table[name][:, None], labels, 1)
        return scores

    def oracle(self, batch: Batch, shift: int) -> Outputs:
        return {"logits": F.one_hot((batch["label"].clamp(min=0) + shift) % self.classes, self.classes).float()}


class Segmentation:
    """mIoU, mAcc and aAcc over all pixels of a split, at the label maps' own size. In percent."""

    def __init__(self, classes: int, ignore_label: int) -> None:
        self.classes, self.ignore_label = classes, ignore_label

    def rows(self, outputs: Outputs, batch: Batch) -> Table:
        """intersect, predicted, labelled: pixels of each class, (B, K) int64."""
        found = [
            areas(_at_size_of(labels, logits), labels.to(logits.device), self.classes, self.ignore_label)
            for logits, labels in zip(outputs["logits"], batch["map"], strict=True)
        ]
        columns = {name: np.stack([getattr(one, name) for one in found]) for name in Areas._fields}
        return {"index": batch["index"].numpy(), **columns}

    def summary(self, table: Table) -> dict[str, float]:
        scores = overlap(self.total(table))
        return {"mIoU": scores.mIoU, "mAcc": scores.mAcc, "aAcc": scores.aAcc}

    def total(self, table: Table) -> Areas:
        """Areas summed over all images."""
        return Areas(*(table[name].sum(axis=0) for name in Areas._fields))

    def oracle(self, batch: Batch, shift: int) -> Outputs:
        shown = [((labels.long() % self.classes) + shift) % self.classes for labels in batch["map"]]
        return {"logits": [F.one_hot(one, self.classes).movedim(-1, 0).float() for one in shown]}


def _at_size_of(labels: Tensor, logits: Tensor) -> Tensor:
    """The predicted classes (H, W) of logits (K, h, w), brought to the label map's size before deciding."""
    if logits.shape[-2:] != labels.shape:
        logits = F.interpolate(logits[None].float(), labels.shape, mode="bilinear", align_corners=False)[0]
    return logits.argmax(0)


def check(scorer: Scorer, batch: Batch) -> None:
    """AssertionError unless a perfect predictor scores 100 on these images, and one that is off by one scores 0."""
    for shift, expected in ((0, 100.0), (1, 0.0)):
        name, found = next(iter(scorer.summary(scorer.rows(scorer.oracle(batch, shift), batch)).items()))
        unlabelled = math.isnan(found)  # nothing in these images counts, so nothing can be checked on them
        assert unlabelled or math.isclose(found, expected, abs_tol=1e-9), (
            f"{name} of a predictor that answers label + {shift} is {found}, not {expected}: scores cannot be trusted"
        )


def joined(tables: list[Table]) -> Table:
    """Rows of many tables in one, by image."""
    parts = [table for table in tables if table]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    by_index = np.argsort(whole["index"], kind="stable")
    return {name: column[by_index] for name, column in whole.items()}
