"""What a stage measures of itself while it trains: the clock, the waiting for data, sums over steps, records."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bench.files import write_json
from bench.references import Watch
from bench.store import Record, Run

log = logging.getLogger(__name__)


class Clock:
    """Seconds of training, over all attempts; it stands still during evaluation and checkpointing."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Time it has run so far."""
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    def start(self) -> None:
        """Let it run."""
        assert self._since is None, "the clock runs already"
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Let it stand."""
        self._before, self._since = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, it stands."""
        self.stop()
        try:
            yield
        finally:
            self.start()


class Meter:
    """Collects the sums of each step on the device, and reads them only when they are to be recorded.

    Reading makes the host wait for the device, so a value that is not finite is noticed at the next reading; there is
    always one before a checkpoint.
    """

    def __init__(self, *, images_per_step: int, processes: int, scaled: bool = False) -> None:
        self.images_per_step, self.processes = images_per_step, processes
        self.scaled = scaled  # fp16: a gradient that overflows only makes the scaler skip a step
        self.clock = Clock()
        self.waited = 0.0  # seconds for the next batch, over all attempts
        self.flops_per_image = 0.0
        self.peak: float | None = None  # operations per second of one device
        self.loss = math.nan  # as last read
        self._names: tuple[str, ...] = ()
        self._sums: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._mark = (0.0, 0.0)  # seconds, waited at the last reading

    def start(self) -> None:
        """Begin to measure, at the first step or after a checkpoint was loaded."""
        self._mark = (self.clock.seconds, self.waited)
        self.clock.start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, the loop has no batch to work on."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def add(self, names: tuple[str, ...], sums: Tensor, norm: Tensor) -> None:
        """One step: sums over its global batch, named; "loss" and "count" among them. norm: of the gradient."""
        self._names = names
        self._sums.append(sums)
        self._norms.append(norm)

    def read(self, step: int) -> dict[str, float]:
        """Averages since the last reading, after `step` steps. FloatingPointError names the first step gone wrong."""
        if not self._sums:
            return {}
        sums, norms = torch.stack(self._sums).double().cpu(), torch.stack(self._norms).double().cpu()
        steps, self._sums, self._norms = len(sums), [], []
        self._check(step - steps + 1, sums, norms)
        totals = dict(zip(self._names, sums.sum(0).tolist(), strict=True))
        count = totals.pop("count")
        found = {name: value / count for name, value in totals.items()} | {"grad_norm": float(norms.mean())}
        self.loss = found["loss"]
        return found | self._speed(step, steps)

    def _check(self, first: int, sums: Tensor, norms: Tensor) -> None:
        table = sums if self.scaled else torch.cat([sums, norms[:, None]], dim=1)
        wrong = (~table.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if wrong:
            row = dict(zip(self._names, sums[wrong[0]].tolist(), strict=True))
            count = row.pop("count")
            values = ", ".join(f"{name} = {value / count if count else value:g}" for name, value in row.items())
            norm = f"gradient norm = {float(norms[wrong[0]]):g}"
            raise FloatingPointError(f"step {first + wrong[0]} is not finite: {values}, {norm}, {count:g} items")

    def _speed(self, step: int, steps: int) -> dict[str, float]:
        seconds, waited = self.clock.seconds - self._mark[0], self.waited - self._mark[1]
        self._mark = (self.clock.seconds, self.waited)
        rate = steps * self.images_per_step / seconds
        found = {
            "images_per_second": rate,
            "data_wait": waited / seconds,
            "flops": step * self.images_per_step * self.flops_per_image,
        }
        if self.peak:
            found["mfu"] = rate * self.flops_per_image / (self.peak * self.processes)
        return found

    def facts(self) -> dict[str, float]:
        """What a checkpoint keeps of the meter."""
        return {"seconds": self.clock.seconds, "waited": self.waited}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's facts."""
        self.clock, self.waited = Clock(facts["seconds"]), facts["waited"]


class Journal:
    """Writes records and progress of one run; only the first of several processes has one that writes."""

    def __init__(self, run: Run, *, stage: str, steps: int, steps_per_epoch: int, images_per_step: int, writes: bool):
        self.run, self.stage, self.steps, self.writes = run, stage, steps, writes
        self.steps_per_epoch, self.images_per_step = steps_per_epoch, images_per_step
        self._told = -math.inf
        self._begun: tuple[int, float] | None = None  # step and time of the first sign of progress
        self.watch: Watch | None = None  # beside the curves of others

    def record(self, step: int, seconds: float, split: str, values: Mapping[str, float]) -> None:
        """Values measured after `step` steps and `seconds` of training."""
        if self.writes and values:
            place = (step, step / self.steps_per_epoch, step * self.images_per_step, seconds, split)
            self.run.append(Record(*place, name, value) for name, value in values.items())
            if self.watch and split == "train" and (told := self.watch.look(step / self.steps_per_epoch, values)):
                log.warning("%s", told)
                self.run.log_attempt("warning", told=told)

    def progress(self, step: int, meter: Meter) -> None:
        """Say where the stage is, once a second at most, and at the end."""
        now = time.monotonic()
        if not self.writes or (now - self._told < 1.0 and step < self.steps):
            return
        self._told = now
        begun, since = self._begun = self._begun or (step, meter.clock.seconds)
        per_step = (meter.clock.seconds - since) / (step - begun) if step > begun else None
        body = {
            "stage": self.stage,
            "step": step,
            "steps": self.steps,
            "images_per_second": self.images_per_step / per_step if per_step else None,
            "loss": meter.loss if math.isfinite(meter.loss) else None,
            "eta_seconds": per_step * (self.steps - step) if per_step else None,
            "data_wait": meter.waited / meter.clock.seconds if meter.clock.seconds else 0.0,
        }
        if self.watch and self.watch.warning:
            body["warning"] = self.watch.warning
        write_json(self.run.path("progress.json"), body, durable=False)
