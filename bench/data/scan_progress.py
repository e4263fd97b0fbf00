"""Long work on many files, told to a person: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PATIENCE_SECONDS = 1.0  # shorter work is not spoken of
INTERVAL_SECONDS = 15.0


class Counter(Protocol):
    """Is told how far the work has come."""

    def advance(self, items: int, size: int = 0) -> None:
        """`items` more are done, of `size` bytes together."""
        ...


@contextmanager
def counter(what: str, items: int, size: int = 0) -> Iterator[Counter]:
    """Tells on stderr how far `what` is, of so many items and bytes, from one second on."""
    counting = _Bar(what, items, size) if sys.stderr.isatty() else _Lines(what, items, size)
    try:
        yield counting
    finally:
        counting.close()


class _Counting:
    """What both ways of telling count."""

    def __init__(self, what: str, items: int, size: int) -> None:
        self.what, self.items, self.size = what, items, size
        self.done = self.bytes = 0
        self.began = self.last = time.monotonic()

    def advance(self, items: int, size: int = 0) -> None:
        self.done += items
        self.bytes += size
        if time.monotonic() - self.began > PATIENCE_SECONDS:
            self.tell()

    def told(self) -> str:
        """'12,345 of 1,281,167, 1.4 of 147.9 GB, 4:20 left'."""
        words = [f"{self.done:,} of {self.items:,}"]
        if self.size:
            words.append(f"{self.bytes / 1e9:.1f} of {self.size / 1e9:.1f} GB")
        share = (self.bytes + self.done) / max(self.size + self.items, 1)
        if share:
            left = round((time.monotonic() - self.began) * (1 - share) / share)
            words.append(f"{left // 60}:{left % 60:02d} left")
        return ", ".join(words)

    def tell(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """The work is over."""


class _Lines(_Counting):
    """One line per interval."""

    def tell(self) -> None:
        if time.monotonic() - self.last < INTERVAL_SECONDS:
            return
        self.last = time.monotonic()
        sys.stderr.write(f"{self.what}: {self.told()}\n")
        sys.stderr.flush()


class _Bar(_Counting):
    """A bar that goes when the work is over."""

    def __init__(self, what: str, items: int, size: int) -> None:
        super().__init__(what, items, size)
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[told]}"))
        self.progress = Progress(*columns, console=Console(stderr=True, highlight=False), transient=True)
        self.bar = self.progress.add_task(what, total=items, told="")

    def tell(self) -> None:
        self.progress.start()
        self.progress.update(self.bar, completed=self.done, told=self.told())

    def close(self) -> None:
        self.progress.stop()
