"""A report that follows a study under way: written again whenever a stage has come further."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.config.stage import Plan
from bench.errors import BenchError
from bench.runs.run import Run
from bench.runs.store import run_of

LOOK = 5.0  # seconds between two looks
Seen = tuple[tuple[str, str, int], ...]


def changes(
    plan: Plan, results: Path, seconds: float = LOOK, sleep: Callable[[float], None] = time.sleep
) -> Iterator[None]:
    """Once at first, then every time that a stage of the plan has come further. Never ends."""
    before: Seen | None = None
    while True:
        now = seen(plan, results)
        if now != before:
            before = now
            yield
        else:
            sleep(seconds)


def seen(plan: Plan, results: Path) -> Seen:
    """What a report depends on, at a glance: state, error and age of the results of every stage."""
    return tuple(_glance(run_of(results, stage)) for stage in plan.stages.values())


def _glance(run: Run) -> tuple[str, str, int]:
    try:
        status = run.status()
        age = run.path("results.json").stat().st_mtime_ns if status.state == "done" else 0
        return status.state, status.error, age
    except (BenchError, OSError):  # half-written or gone for a moment: the report will say what is wrong
        return "unreadable", "", 0
