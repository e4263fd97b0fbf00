"""Progress of long work on many files: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PATIENCE_SECONDS = 1.0  # shorter work shows no progress
INTERVAL_SECONDS = 15.0  # between lines


class Counter(Protocol):
    """Counts the items and bytes that are done."""

    def advance(self, items: int, size: int = 0) -> None:
        """Count `items` more as done, of `size` bytes together."""
        ...


@contextmanager
def counter(what: str, items: int, size: int = 0) -> Iterator[Counter]:
    """Show the progress of `what` on stderr, in items and bytes, once it has taken a second."""
    progress = _Bar(what, items, size) if sys.stderr.isatty() else _Lines(what, items, size)
    try:
        yield progress
    finally:
        progress.close()


class _Progress:
    """What is done so far, as text."""

    def __init__(self, what: str, items: int, size: int) -> None:
        self.what, self.items, self.size = what, items, size
        self.done = self.bytes = 0
        self.began = self.last = time.monotonic()

    def advance(self, items: int, size: int = 0) -> None:
        self.done += items
        self.bytes += size
        if time.monotonic() - self.began > PATIENCE_SECONDS:
            self.show()

    def text(self) -> str:
        """'12,345 of 1,281,167, 1.4 of 147.9 GB, 4:20 left'."""
        words = [f"{self.done:,} of {self.items:,}"]
        if self.size:
            words.append(f"{self.bytes / 1e9:.1f} of {self.size / 1e9:.1f} GB")
        # in effect by bytes, of which there are far more than items; by items where no size is known
        share = (self.bytes + self.done) / max(self.size + self.items, 1)
        if share:
            seconds = round((time.monotonic() - self.began) * (1 - share) / share)
            words.append(f"{seconds // 60}:{seconds % 60:02d} left")
        return ", ".join(words)

    def show(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """End the progress display."""


class _Lines(_Progress):
    """One line per interval."""

    def show(self) -> None:
        if time.monotonic() - self.last < INTERVAL_SECONDS:
            return
        self.last = time.monotonic()
        sys.stderr.write(f"{self.what}: {self.text()}\n")
        sys.stderr.flush()


class _Bar(_Progress):
    """A bar that disappears when the work is over."""

    def __init__(self, what: str, items: int, size: int) -> None:
        super().__init__(what, items, size)
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"))
        self.progress = Progress(*columns, console=Console(stderr=True, highlight=False), transient=True)
        self.bar = self.progress.add_task(what, total=items, text="")

    def show(self) -> None:
        self.progress.start()
        self.progress.update(self.bar, completed=self.done, text=self.text())

    def close(self) -> None:
        self.progress.stop()
