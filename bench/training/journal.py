"""The log of a stage: records.jsonl, progress.json, and a warning when a curve leaves its reference."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from bench.files import write_json
from bench.runs.reference_curves import Watch
from bench.runs.run import Record, Run
from bench.training.monitor import Meter, log


class Journal:
    """Writes records and progress of one run; of several processes only the first writes."""

    def __init__(
        self,
        run: Run,
        *,
        stage: str,
        steps: int,
        steps_per_epoch: int,
        images_per_step: int,
        writes: bool,
        watch: Watch,  # compares the curves with reference curves
    ) -> None:
        self.run, self.stage, self.steps, self.writes, self.watch = run, stage, steps, writes, watch
        self.steps_per_epoch, self.images_per_step = steps_per_epoch, images_per_step
        self._last_write = -math.inf  # of progress.json
        self._begun: tuple[int, float] | None = None  # step and seconds of training at the first `progress`

    def record(self, step: int, seconds: float, split: str, values: Mapping[str, float]) -> None:
        """Store values measured after `step` steps and `seconds` of training."""
        if self.writes and values:
            place = (step, step / self.steps_per_epoch, step * self.images_per_step, seconds, split)
            self.run.append(Record(*place, name, value) for name, value in values.items())
            if split == "train" and (warning := self.watch.look(step / self.steps_per_epoch, values)):
                log.warning("%s", warning)
                self.run.log_attempt("warning", told=warning)

    def progress(self, step: int, meter: Meter) -> None:
        """Update progress.json, once a second at most, and at the end."""
        now = time.monotonic()
        if not self.writes or (now - self._last_write < 1.0 and step < self.steps):
            return
        self._last_write = now
        # Speed since the first call: earlier attempts, perhaps on other devices, and the first step do not count.
        begun, since = self._begun = self._begun or (step, meter.clock.seconds)
        per_step = (meter.clock.seconds - since) / (step - begun) if step > begun else None
        body = {
            "stage": self.stage,
            "step": step,
            "steps": self.steps,
            "images_per_second": self.images_per_step / per_step if per_step else None,
            "loss": meter.loss if math.isfinite(meter.loss) else None,  # JSON has no NaN
            "eta_seconds": per_step * (self.steps - step) if per_step else None,
            "data_wait": meter.waited / meter.clock.seconds if meter.clock.seconds else 0.0,
        }
        if self.watch.warning:
            body["warning"] = self.watch.warning
        write_json(self.run.path("progress.json"), body, durable=False)  # not synced: it is rewritten in a second
