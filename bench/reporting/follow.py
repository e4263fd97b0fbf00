"""When to rewrite the report of a running study: whenever the state of a stage has changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.config.stage import Plan
from bench.errors import BenchError
from bench.runs.run import Run
from bench.runs.store import run_of

POLL_SECONDS = 5.0
Snapshot = tuple[tuple[str, str, int], ...]


def changes(
    plan: Plan, results: Path, seconds: float = POLL_SECONDS, sleep: Callable[[float], None] = time.sleep
) -> Iterator[None]:
    """Yield once at first, then whenever the state of a stage of the plan has changed. Never ends."""
    before: Snapshot | None = None
    while True:
        now = snapshot(plan, results)
        if now != before:
            before = now
            yield
        else:
            sleep(seconds)


def snapshot(plan: Plan, results: Path) -> Snapshot:
    """What a report depends on: state, error and modification time of results.json of every stage."""
    return tuple(_state(run_of(results, stage)) for stage in plan.stages.values())


def _state(run: Run) -> tuple[str, str, int]:
    try:
        status = run.status()
        modified = run.path("results.json").stat().st_mtime_ns if status.state == "done" else 0
        return status.state, status.error, modified
    except (BenchError, OSError):  # half-written or gone for a moment; if it stays so, the report says what is wrong
        return "unreadable", "", 0
