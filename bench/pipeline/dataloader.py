"""Data loading: each view is computed under a seed of its own, by any number of worker processes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bench.config import schema
from bench.pipeline.sampler import Batches, Draw
from bench.pipeline.transforms import normalise
from bench.seeding import derive, forked, seed_cpu

Batch = dict[str, Any]
View = Callable[[dict[str, Any]], dict[str, Any]]
ON_CPU = frozenset({"index", "position"})  # read by the host in every step; copied back from a GPU they would sync


class Images(Protocol):
    """What the loader needs of a data source."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class _ViewDataset:
    """A source and a view, as a data set of torch: from a list of draws to one batch."""

    def __init__(self, source: Images, view: View, seed: int) -> None:
        self.source, self.view, self.seed = source, view, seed

    def __getitems__(self, draws: Sequence[Draw]) -> Batch:
        with forked(0):  # without workers this runs in the training process, whose generators must not move
            samples = [self._sample(draw) for draw in draws]
        return collate(samples, draws)

    def _sample(self, draw: Draw) -> dict[str, Any]:
        seed_cpu(derive(self.seed, "view", draw.epoch, draw.image, draw.copy))
        return self.view(self.source[draw.image] | {"index": draw.image})


def collate(samples: Sequence[Mapping[str, Any]], draws: Sequence[Draw]) -> Batch:
    """One batch of many samples, with `index` and `position` (B,). Tensors of different sizes stay a list."""
    batch: Batch = {name: _stack([sample[name] for sample in samples]) for name in samples[0]}
    batch["index"] = torch.tensor([draw.image for draw in draws])
    batch["position"] = torch.tensor([draw.position for draw in draws])
    return batch


def _stack(values: Sequence[Any]) -> Tensor | list[Tensor]:
    tensors = [torch.as_tensor(value) for value in values]
    if any(tensor.shape != tensors[0].shape for tensor in tensors):
        return tensors
    return torch.stack(tensors)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`, without waiting for the copy; `index` and `position` stay on the CPU."""
    return {name: value if name in ON_CPU else _move(value, device) for name, value in batch.items()}


def move_and_normalise(batch: Batch, device: torch.device, protocol: schema.Protocol) -> Batch:
    """The batch on `device`, its images normalised: the input of an objective."""
    batch = to_device(batch, device)
    return batch | {"image": normalise(batch["image"], protocol.mean, protocol.std)}


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_move(item, device) for item in value]
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


def load_batches(
    source: Images, view: View, draws: Iterable[list[Draw]], *, seed: int, workers: int = 0, pin: bool = False
) -> Iterator[Batch]:
    """One batch for each list of draws, in that order, whatever the number of workers and their order of work."""
    loader: DataLoader[Batch] = DataLoader(
        _ViewDataset(source, view, seed),  # type: ignore[arg-type]
        batch_sampler=draws,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_identity,  # __getitems__ has collated the batch
        pin_memory=pin,
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # without one, each iterator draws its base seed from the global generator
    )
    return iter(loader)


def loader(
    source: Images, view: View, batches: Batches, *, seed: int, start: int, stop: int, workers: int, pin: bool = False
) -> Iterator[list[Batch]]:
    """The micro-batches of this process, one list per optimiser step, from step `start` to `stop` - 1."""
    micro_batches = load_batches(source, view, _Restartable(batches, start, stop), seed=seed, workers=workers, pin=pin)
    for _ in range(start, stop):
        yield [next(micro_batches) for _ in range(batches.accumulation)]


class _Restartable:
    """Lists of draws of steps `start` to `stop` - 1; unlike a generator it can be pickled for worker processes."""

    def __init__(self, batches: Batches, start: int, stop: int) -> None:
        self.batches, self.start, self.stop = batches, start, stop

    def __iter__(self) -> Iterator[list[Draw]]:
        return self.batches.from_step(self.start, self.stop)


def _identity(batch: Any) -> Batch:
    return batch


def _ignore_signals(worker: int) -> None:
    """Ctrl-C and the scheduler's warning reach the whole process group; the main process decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
