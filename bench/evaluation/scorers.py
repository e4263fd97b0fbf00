"""Scorers: predictions become rows, one per image, and rows become scores.

A table maps a column's name to an array whose first axis is the images; "index" is always among them.
Letters: B images, K classes, H x W pixels of a label map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.config import schema
from bench.errors import BenchError
from bench.evaluation.metrics import Areas, accuracy, areas, overlap, top_classes
from bench.evaluation.sliding_window import WindowLogits, decide
from bench.pipeline.dataloader import Batch

Table = dict[str, np.ndarray]
Outputs = Mapping[str, Any]  # logits by head, (B, K); or "window_logits", of each image in turn
# What evaluation makes of answers (1, K, H, W) that are put in as if they were images.
PipelineOfAnswers = Callable[[Tensor], list[WindowLogits]]


class Scorer(Protocol):
    """Computes the scores of one kind of task."""

    def rows(self, outputs: Outputs, batch: Batch) -> Table:
        """One row per image of the batch."""
        ...

    def summary(self, table: Table) -> dict[str, float]:
        """Scores of a whole split; the first is the headline."""
        ...

    def oracle(self, batch: Batch, shift: int, pipeline_of_answers: PipelineOfAnswers) -> Outputs:
        """Outputs that predict the label plus `shift` everywhere, for the sanity check."""
        ...


class Classification:
    """top-1 and top-5 accuracy and cross entropy; the accuracy of every head besides. In percent.

    among: the classes that may be predicted, where these are not all; logits of the others do not count.
    """

    def __init__(self, classes: int, among: Sequence[int] | None = None) -> None:
        self.classes = classes
        self.among = torch.arange(classes) if among is None else torch.tensor(sorted(among))

    def rows(self, outputs: Outputs, batch: Batch) -> Table:
        """label, top5 (B, 5), loss, confidence, logits (B, K) float16, and prediction_HEAD for every other head.

        confidence: the highest probability.
        """
        labels = batch["label"].to(outputs["logits"].device)
        self._check_labels(batch["index"], labels)
        logits = self._mask(outputs["logits"].float())  # bf16 has only two to three digits
        others = {name: self._mask(value) for name, value in outputs.items() if name != "logits"}
        heads = {f"prediction_{name}": value.argmax(1) for name, value in others.items()}
        columns = {
            "index": batch["index"],
            "label": labels,
            "top5": top_classes(logits, 5),
            "loss": F.cross_entropy(logits, labels, reduction="none"),
            "confidence": logits.softmax(1).amax(1),
            "logits": outputs["logits"].half(),  # float16: they are most of predictions.parquet
            **heads,
        }
        return {name: value.cpu().numpy() for name, value in columns.items()}

    def _mask(self, logits: Tensor) -> Tensor:
        """Logits that are -inf for the classes that may not be predicted."""
        if len(self.among) == self.classes:
            return logits
        among = self.among.to(logits.device)
        return torch.full_like(logits, -math.inf).index_copy(1, among, logits[:, among])

    def _check_labels(self, indices: Tensor, labels: Tensor) -> None:
        """Raise BenchError for the first label that cannot be predicted."""
        wrong = (~torch.isin(labels.cpu(), self.among)).nonzero().flatten().tolist()
        if wrong:
            label, index = int(labels[wrong[0]]), int(indices[wrong[0]])
            allowed = f"{len(self.among)} classes may be predicted, and it is none of them"
            if len(self.among) == self.classes:
                allowed = f"the model knows 0 to {self.classes - 1}"
            raise BenchError(f"image {index} has the label {label}, {allowed}")

    def summary(self, table: Table) -> dict[str, float]:
        labels = true_labels(table)
        scores = {"top1": accuracy(table["top5"], labels, 1), "top5": accuracy(table["top5"], labels, 5)}
        scores["loss"] = float(table["loss"].astype(np.float64).mean())
        for name in sorted(name for name in table if name.startswith("prediction_")):
            scores[f"top1_{name.removeprefix('prediction_')}"] = accuracy(table[name][:, None], labels, 1)
        return scores

    def oracle(self, batch: Batch, shift: int, pipeline_of_answers: PipelineOfAnswers) -> Outputs:
        rank = torch.searchsorted(self.among, batch["label"].clamp(min=0))  # among the classes that may be predicted
        answers = self.among[(rank + shift) % len(self.among)]
        return {"logits": F.one_hot(answers, self.classes).float()}


class LabelSets(Classification):
    """As `Classification`, where any label of an image's set is right: ReaL.

    sets: (images of the split, L) classes, -1 behind the last. Images with an empty set are not in the split.
    Source: arXiv 2006.07159, section 3 (the top-1 prediction counts when it is in the set).
    """

    def __init__(self, classes: int, sets: np.ndarray) -> None:
        super().__init__(classes)
        self.sets = torch.from_numpy(np.ascontiguousarray(sets)).long()

    def rows(self, outputs: Outputs, batch: Batch) -> Table:
        """As `Classification`, with label_set (B, L); the loss is -log of the probability of the whole set."""
        table = super().rows(outputs, batch)
        logits = outputs["logits"].float()
        inside = self._inside(batch).to(logits.device)
        loss = logits.logsumexp(1) - logits.masked_fill(~inside, -math.inf).logsumexp(1)
        return {**table, "label_set": self.sets[batch["index"]].numpy(), "loss": loss.cpu().numpy()}

    def _inside(self, batch: Batch) -> Tensor:
        """Which classes are right for each image: (B, K) bool."""
        sets = self.sets[batch["index"]]
        inside = torch.zeros(len(sets), self.classes + 1, dtype=torch.bool)
        return inside.scatter_(1, sets % (self.classes + 1), True)[:, : self.classes]  # -1 falls into the last column

    def oracle(self, batch: Batch, shift: int, pipeline_of_answers: PipelineOfAnswers) -> Outputs:
        """The label; with a shift the next class after it that is not in the set."""
        order = (batch["label"][:, None] + shift + torch.arange(self.classes)) % self.classes  # (B, K)
        suitable = self._inside(batch).gather(1, order) == (shift == 0)
        answers = order.gather(1, suitable.int().argmax(1, keepdim=True))[:, 0]  # argmax: the first that is
        return {"logits": F.one_hot(answers, self.classes).float()}


def true_labels(table: Table) -> np.ndarray:
    """The true label of each image of a table (n,), or its set of them (n, L)."""
    return table["label_set"] if "label_set" in table else table["label"]


def classifier(classes: int, protocol: schema.Protocol, source: Any) -> Classification:
    """The scorer of images with labels, as a protocol asks. The source has `label_sets()` or `among` where it must."""
    if protocol.right == "label-set":
        return LabelSets(classes, source.label_sets())
    return Classification(classes, source.among if protocol.among == "split" else None)


class Segmentation:
    """mIoU, mAcc and aAcc over all pixels of a split, at the label maps' own size. In percent."""

    def __init__(self, classes: int, ignore_label: int) -> None:
        self.classes, self.ignore_label = classes, ignore_label

    def rows(self, outputs: Outputs, batch: Batch) -> Table:
        """intersect, predicted, labelled: pixels of each class, (B, K) int64."""
        # window_logits is a generator: only those of one image are in memory.
        pairs = zip(outputs["window_logits"], batch["map"], strict=True)
        rows = [self._areas(window_logits, labels) for window_logits, labels in pairs]
        columns = {field.name: np.stack([getattr(row, field.name) for row in rows]) for field in fields(Areas)}
        return {"index": batch["index"].numpy(), **columns}

    def _areas(self, window_logits: list[WindowLogits], labels: Tensor) -> Areas:
        prediction = decide(window_logits, (labels.shape[0], labels.shape[1]))
        return areas(prediction, labels.to(prediction.device), self.classes, self.ignore_label)

    def summary(self, table: Table) -> dict[str, float]:
        scores = overlap(self.total(table))
        return {"mIoU": scores.mIoU, "mAcc": scores.mAcc, "aAcc": scores.aAcc}

    def total(self, table: Table) -> Areas:
        """Areas summed over all images."""
        return Areas(*(table[field.name].sum(axis=0) for field in fields(Areas)))

    def oracle(self, batch: Batch, shift: int, pipeline_of_answers: PipelineOfAnswers) -> Outputs:
        return {"window_logits": (pipeline_of_answers(self._answer(labels, shift)) for labels in batch["map"])}

    def _answer(self, labels: Tensor, shift: int) -> Tensor:
        answers = ((labels.long() % self.classes) + shift) % self.classes  # ignored pixels get any class
        return (answers == torch.arange(self.classes)[:, None, None])[None].float()


def sanity_check(
    scorer: Scorer, batch: Batch, pipeline_of_answers: PipelineOfAnswers = lambda answers: [(answers[0], 1)]
) -> None:
    """Raise AssertionError unless a perfect predictor scores 100 on these images, and one that is off by one scores 0.

    pipeline_of_answers: puts the answers for a label map, as if they were an image, through all that an image goes
    through in an evaluation.
    """
    for shift, expected in ((0, 100.0), (1, 0.0)):
        outputs = scorer.oracle(batch, shift, pipeline_of_answers)
        name, score = next(iter(scorer.summary(scorer.rows(outputs, batch)).items()))
        unlabelled = math.isnan(score)  # nothing in these images counts, so nothing can be checked on them
        assert unlabelled or math.isclose(score, expected, abs_tol=1e-9), (
            f"{name} of a predictor that answers label + {shift} is {score}, not {expected}: scores cannot be trusted"
        )


def join_tables(tables: list[Table]) -> Table:
    """Rows of many tables in one, by image."""
    parts = [table for table in tables if table]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    by_index = np.argsort(whole["index"], kind="stable")
    return {name: column[by_index] for name, column in whole.items()}
