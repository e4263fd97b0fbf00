"""What a stage measures while it trains: training time without evaluation, data wait, sums over steps, MFU."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class Clock:
    """Seconds of training, over all attempts; paused during evaluation and checkpointing."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds that it has run."""
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    def start(self) -> None:
        """Start the clock, or resume it after `stop`."""
        assert self._since is None, "the clock runs already"
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Stop the clock; its seconds stay."""
        self._before, self._since = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock inside the with block."""
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

    def __init__(
        self, *, images_per_step: int, processes: int, scaled: bool, flops_per_image: float, peak: float | None
    ) -> None:
        self.images_per_step, self.processes = images_per_step, processes
        self.scaled = scaled  # fp16: a gradient that overflows only makes the scaler skip a step
        self.flops_per_image = flops_per_image
        self.peak = peak  # operations per second of one device, None when it is not known
        self.clock = Clock()
        self.waited = 0.0  # seconds for the next batch, over all attempts
        self.loss = math.nan  # as last read
        self._names: tuple[str, ...] = ()
        self._sums: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._mark = (0.0, 0.0)  # seconds, waited at the last reading

    def start(self) -> None:
        """Begin measuring, at the first step or after a checkpoint was loaded."""
        self._mark = (self.clock.seconds, self.waited)
        self.clock.start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside the with block as waiting for data."""
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
        # Here the host waits for the device. In double, because sums of many steps lose digits in fp32.
        sums, norms = torch.stack(self._sums).double().cpu(), torch.stack(self._norms).double().cpu()
        steps, self._sums, self._norms = len(sums), [], []
        self._check(step - steps + 1, sums, norms)
        totals = dict(zip(self._names, sums.sum(0).tolist(), strict=True))
        count = totals.pop("count")
        averages = {name: value / count for name, value in totals.items()} | {"grad_norm": float(norms.mean())}
        self.loss = averages["loss"]
        return averages | self._speed(step, steps)

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
        speed = {
            "images_per_second": rate,
            "data_wait": waited / seconds,
            "flops": step * self.images_per_step * self.flops_per_image,
        }
        if self.peak:
            speed["mfu"] = rate * self.flops_per_image / (self.peak * self.processes)
        return speed

    def facts(self) -> dict[str, float]:
        """What a checkpoint keeps of the meter."""
        return {"seconds": self.clock.seconds, "waited": self.waited}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Continue from the facts of a checkpoint."""
        self.clock, self.waited = Clock(facts["seconds"]), facts["waited"]
