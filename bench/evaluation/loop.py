"""The evaluation loop, during training and after it: every image once, whatever the number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from bench.config.schema import Protocol
from bench.data.source import Source
from bench.evaluation.partial_results import PartialResults
from bench.evaluation.scorers import Outputs, PipelineOfAnswers, Scorer, Segmentation, Table, join_tables, sanity_check
from bench.evaluation.sliding_window import MAX_LOGITS, SlidingWindow, WindowLogits
from bench.launch.distributed import autocast
from bench.launch.signals import Interrupted, Stop
from bench.methods.objective import Objective
from bench.pipeline.dataloader import Batch, View, load_batches, move_and_normalise
from bench.pipeline.sampler import Draw
from bench.pipeline.segmentation_transforms import sizes
from bench.pipeline.transforms import normalise

SANITY_MAPS = 4  # label maps for the sanity check of the metric


@dataclass(frozen=True, slots=True)
class EvalSplit:
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
        """Sliding-window inference, as the protocol sets it, for images with label maps."""
        return SlidingWindow(self.window, self.protocol.stride, self.protocol.flip)


class Scores(NamedTuple):
    """Scores of a split in percent, the first being the headline, and the per-image rows they are computed from."""

    metrics: dict[str, float]
    table: Table


def evaluate(
    objective: Objective,
    split: EvalSplit,
    accelerator: Accelerator,
    *,
    logits: bool = False,
    partial: PartialResults | None = None,
    stop: Stop | None = None,
) -> Scores:
    """Score an objective on every image of a split; the result is the same on all processes.

    Before, a sanity check of the metric on the first images, with answers that are all right and all wrong.
    logits: keep them in the table. partial: partial results, for resuming: an image that has a row there is not scored
    again. stop: read after every batch; Interrupted, with the number of stored rows, when any process is to stop.
    """
    was_training = objective.training
    objective.eval()
    done = partial.read() if partial else {}
    images = np.setdiff1d(np.arange(len(split.source)), done.get("index", [])).tolist()
    accelerator.wait_for_everyone()  # nobody writes before all have read
    tables = []
    for number, batch in enumerate(_pad_batches(batches(split, accelerator, images), images, split, accelerator)):
        if batch is not None:
            if number == 0:
                sanity_check(split.scorer, *_sanity_batch(batch, split))
            rows = split.scorer.rows(predict(objective, batch, split, accelerator.device), batch)
            # Logits are most of a table: 1,000 numbers an image on ImageNet.
            tables.append(rows if logits else {name: rows[name] for name in rows if name != "logits"})
            if partial:
                partial.write(tables[-1])
        if stop and any(gather_object([stop.asked])):
            raise Interrupted(len(partial.read().get("index", [])) if partial else 0)
    objective.train(was_training)
    if done and accelerator.is_main_process:  # all processes have read them; they count once
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


def _pad_batches(
    own: Iterator[Batch], images: Sequence[int], split: EvalSplit, accelerator: Accelerator
) -> Iterator[Batch | None]:
    """As many items on every process, None after its last batch: `evaluate` communicates after each."""
    for _ in range(math.ceil(len(images) / accelerator.num_processes / split.batch_size)):
        yield next(own, None)


def gather(tables: list[Table], images: int) -> Table:
    """The rows of all processes, by image. AssertionError unless every image is there exactly once."""
    whole = join_tables(list(chain.from_iterable(gather_object([tables]))))
    assert np.array_equal(whole["index"], np.arange(images)), (
        f"not every one of {images} images was scored exactly once"
    )
    return whole


@torch.inference_mode()
def predict(objective: Objective, batch: Batch, split: EvalSplit, device: torch.device) -> Outputs:
    """Logits by head for a batch; for label maps the window logits of each image in turn."""
    if isinstance(split.scorer, Segmentation):
        at_once = max(1, MAX_LOGITS // (split.window**2 * split.scorer.classes))  # images: their logits are large
        return {"window_logits": _window_logits(objective, batch, split, device, at_once)}
    with autocast(device, split.precision):
        return objective.predict(move_and_normalise(batch, device, split.protocol))


@torch.inference_mode()
def _window_logits(
    objective: Objective, batch: Batch, split: EvalSplit, device: torch.device, at_once: int
) -> Iterator[list[WindowLogits]]:
    """The window logits of each image of a batch; `at_once` images go through the network together."""
    views = sizes(split.protocol).values()
    if any(not isinstance(batch[name], Tensor) for name, _ in views):
        at_once = 1  # images of several sizes, which cannot be stacked

    def network(images: Tensor) -> Tensor:
        with autocast(device, split.precision):
            return objective.predict({"image": images})["logits"]

    for first in range(0, len(batch["map"]), at_once):
        scales = [(_network_input(batch[name][first : first + at_once], split, device), times) for name, times in views]
        window_logits = split.sliding_window(network, scales)
        for number in range(len(window_logits[0][0])):
            yield [(logits[number], times) for logits, times in window_logits]


def _network_input(images: Tensor | list[Tensor], split: EvalSplit, device: torch.device) -> Tensor:
    """Images of one size as the network takes them: (B, 3, h, w)."""
    stacked = images if isinstance(images, Tensor) else torch.stack(images)
    return normalise(stacked.to(device), split.protocol.mean, split.protocol.std)


def _sanity_batch(batch: Batch, split: EvalSplit) -> tuple[Batch, PipelineOfAnswers]:
    """Images for the sanity check of the metric, and a function that sends answers through the sliding window."""
    if "map" in batch:
        side = split.window * 3 // 2  # more than one window, so that merging windows is checked, too
        maps = [labels[:side, :side] for labels in batch["map"][:SANITY_MAPS]]
        batch = {"index": batch["index"][:SANITY_MAPS], "map": maps}

    def pipeline_of_answers(answers: Tensor) -> list[WindowLogits]:
        sliding_window = split.sliding_window
        if split.protocol.whole:  # one window holds the whole image
            sliding_window = replace(sliding_window, window=max(answers.shape))
        scales = [(answers, times) for _, times in sizes(split.protocol).values()]
        return [(logits[0], times) for logits, times in sliding_window(lambda answer: answer, scales)]

    return batch, pipeline_of_answers


def score_function(objective: Objective, split: EvalSplit, accelerator: Accelerator) -> Callable[[], dict[str, float]]:
    """A function that scores the objective as it is at that moment, for the training loop."""
    return lambda: evaluate(objective, split, accelerator).metrics
