"""Stopping on a signal (Ctrl-C, a warning or the termination by a job scheduler), always at a step boundary."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupted(Exception):
    """The stage stopped after `step` steps because it was asked to, with a checkpoint."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}, with a checkpoint")
        self.step = step


class Stop:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self, number: int = 0, frame: FrameType | None = None) -> None:
        """To be used as a signal handler."""
        self.asked = True


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Let SIGTERM, SIGINT and SIGUSR1 only set `asked` inside the with block; the caller stops when it can."""
    stop = Stop()
    before = {number: signal.signal(number, stop.ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
