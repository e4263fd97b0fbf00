"""A study under way, arms x stages, from the files of its runs alone: works over ssh, beside any number of workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.cli.progress import duration, position
from bench.config.stage import Plan, PlannedArm
from bench.errors import BenchError
from bench.runs.run import Record, Run, Status
from bench.runs.store import read_plan, run_of

BARS = "▁▂▃▄▅▆▇█"
SPARKS = 12  # points of a sparkline
OVER = ("done", "failed", "blocked")
BUSY = ("running", "failed", "interrupted", "blocked", "pending", "done")  # which of several seeds is told of


class Seen(NamedTuple):
    """What is known of one stage."""

    run: Run
    status: Status
    blocked: bool  # by an earlier one that failed

    @property
    def state(self) -> str:
        """As its folder says, or blocked."""
        return "blocked" if self.blocked else self.status.state


class StageProgress(NamedTuple):
    """One stage of one arm, all seeds together."""

    state: str  # done, running, failed, interrupted, pending, or blocked by one that failed; the busiest of the seeds
    done: int
    seeds: int
    now: dict[str, Any] = {}  # noqa: RUF012 - where the running one is
    line: str = ""  # the loss or score so far
    error: str = ""


class StudyProgress(NamedTuple):
    """What a look at a study sees: cells by arm and role, in the plan's order."""

    study: str
    roles: tuple[str, ...]
    rows: tuple[tuple[str, dict[str, StageProgress]], ...]
    finished: int
    total: int

    @property
    def over(self) -> bool:
        """Nothing is left to wait for."""
        return all(cell.state in OVER for _, cells in self.rows for cell in cells.values())


def look(plan: Plan, output: Path) -> StudyProgress:
    """The state of every stage of a plan, as its run folder tells it."""
    runs = {key: run_of(output, stage) for key, stage in plan.stages.items()}
    states = {key: _status(run) for key, run in runs.items()}
    blocked = _blocked(plan, states)
    roles = tuple(dict.fromkeys(role for arm in plan.arms for seed in arm.stages.values() for role in seed))
    seen = {key: Seen(runs[key], status, key in blocked) for key, status in states.items()}
    rows = tuple((_label(plan, arm), _cells(arm, seen)) for arm in plan.arms)
    finished = sum(status.state == "done" for status in states.values())
    return StudyProgress(plan.study.name, _in_order(roles), rows, finished, len(states))


def _status(run: Run) -> Status:
    try:
        return run.status()
    except BenchError as error:
        return Status(state="failed", error=str(error))


def _blocked(plan: Plan, states: dict[str, Status]) -> set[str]:
    """Stages that wait for one that failed; parents stand before their children in a plan."""
    found: set[str] = set()
    for key, status in states.items():
        parents = plan.stages[key].parents.values()
        if status.state == "pending" and any(states[at].state == "failed" or at in found for at in parents):
            found.add(key)
    return found


def _label(plan: Plan, arm: PlannedArm) -> str:
    several = len({other.task for other in plan.arms}) > 1
    return f"{arm.label}, {arm.task}" if several else arm.label


def _in_order(roles: Sequence[str]) -> tuple[str, ...]:
    """Roles as they follow one another in an arm, whichever arm named them first."""
    order = ("tokenizer", "teacher", "supervised", "pretrain", "finetune-", "finetune", "probe", "evaluate")
    places = {role: next((n for n, name in enumerate(order) if role.startswith(name)), len(order)) for role in roles}
    return tuple(sorted(roles, key=lambda role: (places[role], role == "finetune")))


def _cells(arm: PlannedArm, seen: dict[str, Seen]) -> dict[str, StageProgress]:
    keys: dict[str, list[str]] = {}
    for by_role in arm.stages.values():
        for role, key in by_role.items():
            if key not in keys.setdefault(role, []):
                keys[role].append(key)
    return {role: _cell([seen[key] for key in found]) for role, found in keys.items()}


def _cell(found: list[Seen]) -> StageProgress:
    """The busiest of the seeds speaks for all."""
    busiest = min(found, key=lambda one: BUSY.index(one.state))
    state, run = busiest.state, busiest.run
    done = sum(one.state == "done" for one in found)
    now = position(run) if state in ("running", "interrupted") else {}
    line = sparkline(_shown(run)) if state in ("running", "interrupted", "done") else ""
    return StageProgress(state, done, len(found), now, line, busiest.status.error)


def _shown(run: Run) -> list[float]:
    """The score of a stage that has one as it learns, else its loss."""
    try:
        records = run.records()
    except BenchError:
        return []
    return _values(records, "val", ("top1", "mIoU")) or _values(records, "train", ("loss",))


def _values(records: Sequence[Record], split: str, metrics: tuple[str, ...]) -> list[float]:
    return [record.value for record in records if record.split == split and record.metric in metrics]


def sparkline(values: Sequence[float]) -> str:
    """Numbers as a row of bars between their lowest and highest, thinned to `SPARKS` of them."""
    if len(values) < 2:
        return ""
    points = min(SPARKS, len(values))
    thin = [values[round(i * (len(values) - 1) / (points - 1))] for i in range(points)]
    low, high = min(thin), max(thin)
    span = (high - low) or 1.0
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in thin)


def told(cell: StageProgress | None) -> str:
    """A cell in a few words: '3/3 done', '45 % 812/s 3:20 left ▁▃▅', 'failed'."""
    if cell is None:
        return ""
    count = f"{cell.done}/{cell.seeds} " if cell.seeds > 1 else ""
    if cell.state not in ("running", "interrupted"):
        return f"{count}{cell.state} {cell.line}".strip()
    words = [f"{count}{cell.state}" if cell.state == "interrupted" else count.strip()]
    if cell.now.get("steps"):
        words.append(f"{100 * cell.now.get('step', 0) / cell.now['steps']:.0f} %")
    if cell.now.get("images_per_second") and cell.state == "running":
        words.append(f"{cell.now['images_per_second']:,.0f}/s")
    if isinstance(cell.now.get("eta_seconds"), (int, float)) and cell.state == "running":
        words.append(f"{duration(cell.now['eta_seconds'])} left")
    return " ".join(filter(None, [*words, cell.line])) or "starting"


def rows(table: StudyProgress) -> list[dict[str, str]]:
    """The table as text, a column for each role."""
    return [{"arm": label, **{role: told(cells.get(role)) for role in table.roles}} for label, cells in table.rows]


def errors(table: StudyProgress) -> list[str]:
    """Why stages failed."""
    cells = [(f"{label}, {role}", cell) for label, by_role in table.rows for role, cell in by_role.items()]
    return [f"{where}: {cell.error}" for where, cell in cells if cell.error]


def watch(output: Path, study: str, show: Callable[[StudyProgress], None], interval: float) -> None:
    """Show a study again and again, until nothing of it is left to do; a study planned anew is followed."""
    while True:
        table = look(read_plan(output, study), output)
        show(table)
        if table.over:
            return
        time.sleep(interval)
