"""Sampling order: a pure function of (seed, epoch, position), saved nowhere and so never restored wrongly.

Letters: B images of one optimiser step over all processes; b images of one micro-batch on one process;
position: place of an image in the step's global batch, 0 to B - 1.

Departs from the reference (DeiT's sampler): an epoch is cut down to a multiple of B, not of 256; for the published
batch sizes the two are the same. Repeated augmentation does not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from bench.config.schema import Recipe
from bench.errors import BenchError, listed_up_to
from bench.seeding import derive

if TYPE_CHECKING:
    from torch import Tensor


class Draw(NamedTuple):
    """One image of a batch, and what determines its random view."""

    image: int  # its index in the source
    epoch: int
    copy: int  # which of its repeats in this epoch
    position: int  # in the step's global batch


def permutation(seed: int, images: int) -> Tensor:
    """A permutation of 0 to images - 1, from torch's CPU generator with this seed: (images,) int64."""
    import torch  # here, because the planner and the launcher import this module without torch

    return torch.randperm(images, generator=torch.Generator().manual_seed(seed))


def repeat_indices(indices: Tensor, repeats: int) -> Tensor:
    """Every index `repeats` times in a row, so that its copies fall into one batch, on different devices.

    Source: P-DeiT; D: samplers.py.
    """
    return indices.repeat_interleave(repeats)


@lru_cache(maxsize=2)  # it is asked for at every image
def epoch_order(seed: int, epoch: int, images: int, repeats: int = 1) -> Tensor:
    """The order of one epoch: (images,) int64. With repeats it has images / repeats different images."""
    return repeat_indices(permutation(derive(seed, "order", epoch), images), repeats)[:images]


def is_paired(recipe: Recipe) -> bool:
    """Whether images are mixed in pairs, which must then be in the same micro-batch."""
    return recipe.mixup > 0 or recipe.cutmix > 0


def micro_batching(
    batch_size: int, processes: int, micro: int | None = None, *, paired: bool = False
) -> tuple[int, int]:
    """(micro-batch per process, accumulation steps) whose product with `processes` is exactly `batch_size`.

    micro: the micro-batch, or None for the whole share of a process. paired: images are mixed in pairs, so a
    micro-batch is even. BenchError gives the numbers that would fit.
    """
    unit = 2 if paired else 1
    share, rest = divmod(batch_size, processes)
    if rest or share % unit:
        fits = [n for n in range(1, batch_size + 1) if batch_size % (n * unit) == 0]
        pairs = " in even parts (its images are mixed in pairs)" if paired else ""
        raise BenchError(
            f"a batch of {batch_size} does not divide among {processes} processes{pairs}; "
            f"it does among {_listed(fits)}; with {processes}, a batch of {_nearest(batch_size, processes * unit)}"
        )
    if micro is not None and (share % micro or micro % unit):
        fits = [n for n in range(unit, share + 1, unit) if share % n == 0]
        raise BenchError(f"micro-batch {micro} does not divide {share} images per process; {_listed(fits)} would")
    return (micro or share), share // (micro or share)


def _listed(numbers: list[int]) -> str:
    return listed_up_to([str(number) for number in numbers], 12)


def _nearest(batch_size: int, unit: int) -> str:
    lower = batch_size // unit * unit
    return f"{lower} or {lower + unit} would" if lower else f"{unit} would"


class Batches:
    """The micro-batches of one process, step by step.

    A step's global batch is the next B entries of the epoch's order; an incomplete last batch is left out. It is cut
    into chunks of `micro` images, dealt to the processes in turn. In a paired batch, image p is mixed with image
    p + B/2: a chunk then holds both, in its first and its second half.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        *,
        seed: int,
        repeats: int = 1,
        paired: bool = False,
        rank: int = 0,
        processes: int = 1,
        micro: int | None = None,
    ) -> None:
        self.images, self.batch_size, self.seed, self.repeats = images, batch_size, seed, repeats
        self.paired, self.rank, self.processes = paired, rank, processes
        self.micro, self.accumulation = micro_batching(batch_size, processes, micro, paired=paired)
        self.steps_per_epoch = steps_per_epoch(images, batch_size)

    def steps(self, epochs: float) -> int:
        """Optimiser steps in so many epochs; a fraction of an epoch is rounded to the nearest step, at least one."""
        return planned_steps(self.images, self.batch_size, epochs)

    def micro_batches(self, step: int) -> list[list[Draw]]:
        """The images of this process in optimiser step `step`: `accumulation` lists of `micro` draws."""
        chunks = range(self.rank, self.accumulation * self.processes, self.processes)
        return [[self._draw(step, position) for position in self._positions(chunk)] for chunk in chunks]

    def from_step(self, start: int, stop: int) -> Iterator[list[Draw]]:
        """All micro-batches of steps start to stop - 1, in order."""
        for step in range(start, stop):
            yield from self.micro_batches(step)

    def _positions(self, chunk: int) -> list[int]:
        if not self.paired:
            return list(range(chunk * self.micro, (chunk + 1) * self.micro))
        half = self.micro // 2
        first = range(chunk * half, (chunk + 1) * half)
        return [*first, *(position + self.batch_size // 2 for position in first)]

    def _draw(self, step: int, position: int) -> Draw:
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        place = step_of_epoch * self.batch_size + position
        image = epoch_order(self.seed, epoch, self.images, self.repeats)[place]
        return Draw(int(image), epoch, place % self.repeats, position)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches in one epoch. BenchError when there is none."""
    if images < batch_size:
        raise BenchError(
            f"{images} images do not fill one batch of {batch_size}; a batch_size of {images} or less would"
        )
    return images // batch_size


def planned_steps(images: int, batch_size: int, epochs: float) -> int:
    """Optimiser steps of a stage: epochs x whole batches, rounded to the nearest step, at least one."""
    return max(1, round(epochs * steps_per_epoch(images, batch_size)))
