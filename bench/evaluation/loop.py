"""The one evaluation loop, during training and after it: every image once, whatever the number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from bench.config.schema import Protocol
from bench.data.source import Source
from bench.evaluation.partial_results import Partial
from bench.evaluation.scorers import Outputs, PipelineOfAnswers, Scorer, Segmentation, Table, check, joined
from bench.evaluation.sliding_window import MAX_LOGITS, SlidingWindow, WindowLogits
from bench.launch.distributed import autocast
from bench.launch.signals import Interrupted, Stop
from bench.methods.objective import Objective
from bench.pipeline.dataloader import Batch, View, load_batches, move_and_normalise
from bench.pipeline.sampler import Draw
from bench.pipeline.segmentation_transforms import sizes
from bench.pipeline.transforms import normalise

TRIED = 4  # label maps on which the metric is tried


class EvalSplit(NamedTuple):
    """Images to be scored, and how: `window` is the side of the network's input."""

    source: Source
    view: View
    scorer: Scorer
    protocol: Protocol
    window: int
    precision: str = "fp32"
    batch_size: int = 64
    workers: int = 0

    @property
    def sliding_window(self) -> SlidingWindow:
        """How pictures with label maps are looked at."""
        return SlidingWindow(self.window, self.protocol.stride, self.protocol.flip)


class Scores(NamedTuple):
    """Scores of a split in percent, the first being the headline, and the rows they are made of."""

    metrics: dict[str, float]
    table: Table


def evaluate(
    objective: Objective,
    split: EvalSplit,
    accelerator: Accelerator,
    *,
    logits: bool = False,
    partial: Partial | None = None,
    stop: Stop | None = None,
) -> Scores:
    """Score an objective on every image of a split; the result is the same on all processes.

    Before, the metric itself is tried on the first images, with answers known to be right and to be wrong.
    logits: keep them in the table. partial: where rows are kept as they come; an image that has one is not scored
    again. stop: asked after every batch; Interrupted when any process is to stop, with how many rows are kept.
    """
    was_training = objective.training
    objective.eval()
    done = partial.read() if partial else {}
    left = np.setdiff1d(np.arange(len(split.source)), done.get("index", [])).tolist()
    accelerator.wait_for_everyone()  # nobody writes before all have read
    tables = []
    for number, batch in enumerate(_in_step(batches(split, accelerator, left), left, split, accelerator)):
        if batch is not None:
            if number == 0:
                check(split.scorer, *_sanity_batch(batch, split))
            rows = split.scorer.rows(predict(objective, batch, split, accelerator.device), batch)
            tables.append(rows if logits else {name: rows[name] for name in rows if name != "logits"})
            if partial:
                partial.write(tables[-1])
        if stop and any(gather_object([stop.asked])):
            raise Interrupted(len(partial.read().get("index", [])) if partial else 0)
    objective.train(was_training)
    if done and accelerator.is_main_process:
        tables.append(done)
    table = gather(tables, len(split.source))
    return Scores(split.scorer.summary(table), table)


def batches(split: EvalSplit, accelerator: Accelerator, images: Sequence[int] | None = None) -> Iterator[Batch]:
    """This process's share of a split, or of some of its images: every n-th, from its own number on."""
    share = range(len(split.source)) if images is None else images
    mine = share[accelerator.process_index :: accelerator.num_processes]
    parts = [mine[start : start + split.batch_size] for start in range(0, len(mine), split.batch_size)]
    draws = [[Draw(index, 0, 0, index) for index in part] for part in parts]
    pin = accelerator.device.type == "cuda"
    return load_batches(split.source, split.view, draws, seed=0, workers=split.workers, pin=pin)


def _in_step(
    own: Iterator[Batch], left: Sequence[int], split: EvalSplit, accelerator: Accelerator
) -> Iterator[Batch | None]:
    """As many batches on every process, None where there is no more: they ask each other after each."""
    for _ in range(math.ceil(len(left) / accelerator.num_processes / split.batch_size)):
        yield next(own, None)


def gather(tables: list[Table], images: int) -> Table:
    """The rows of all processes, by image. AssertionError unless every image is there exactly once."""
    whole = joined(list(chain.from_iterable(gather_object([tables]))))
    assert np.array_equal(whole["index"], np.arange(images)), f"of {images} images not each was scored exactly once"
    return whole


@torch.inference_mode()
def predict(objective: Objective, batch: Batch, split: EvalSplit, device: torch.device) -> Outputs:
    """Logits by head for a batch; for label maps the looks at each picture in turn."""
    if isinstance(split.scorer, Segmentation):
        at_once = max(1, MAX_LOGITS // (split.window**2 * split.scorer.classes))  # pictures: their logits are large
        return {"window_logits": _window_logits(objective, batch, split, device, at_once)}
    with autocast(device, split.precision):
        return objective.predict(move_and_normalise(batch, device, split.protocol))


@torch.inference_mode()
def _window_logits(
    objective: Objective, batch: Batch, split: EvalSplit, device: torch.device, at_once: int
) -> Iterator[list[WindowLogits]]:
    """The looks at each picture of a batch, taken at so many pictures at once."""
    views = sizes(split.protocol).values()
    if any(not isinstance(batch[name], Tensor) for name, _ in views):
        at_once = 1  # pictures of several sizes

    def network(images: Tensor) -> Tensor:
        with autocast(device, split.precision):
            return objective.predict({"image": images})["logits"]

    for first in range(0, len(batch["map"]), at_once):
        seen = [(_standardised(batch[name][first : first + at_once], split, device), times) for name, times in views]
        found = split.sliding_window(network, seen)
        for number in range(len(found[0][0])):
            yield [(logits[number], times) for logits, times in found]


def _standardised(pictures: Tensor | list[Tensor], split: EvalSplit, device: torch.device) -> Tensor:
    """Pictures of one size as the network takes them: (B, 3, h, w)."""
    images = pictures if isinstance(pictures, Tensor) else torch.stack(pictures)
    return normalise(images.to(device), split.protocol.mean, split.protocol.std)


def _sanity_batch(batch: Batch, split: EvalSplit) -> tuple[Batch, PipelineOfAnswers]:
    """What the metric is tried on before it is believed, and what is done to answers on the way to it.

    Of label maps a few are enough, and of these a part that is larger than one window.
    """
    side = split.window * 3 // 2
    if "map" in batch:
        maps = [labels[:side, :side] for labels in batch["map"][:TRIED]]
        batch = {"index": batch["index"][:TRIED], "map": maps}

    def pipeline_of_answers(answers: Tensor) -> list[WindowLogits]:
        sliding_window = (
            split.sliding_window._replace(window=max(answers.shape)) if split.protocol.whole else split.sliding_window
        )
        window_logits = sliding_window(
            lambda answer: answer, [(answers, times) for _, times in sizes(split.protocol).values()]
        )
        return [(found[0], times) for found, times in window_logits]

    return batch, pipeline_of_answers


def scored(objective: Objective, split: EvalSplit, accelerator: Accelerator) -> Callable[[], dict[str, float]]:
    """A function that scores the objective as it is at that moment, for the training loop."""
    return lambda: evaluate(objective, split, accelerator).metrics
