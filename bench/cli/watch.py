"""Progress of a running study, arms x stages, read from its run folders: works over ssh, with any number of workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.cli.progress import duration, position
from bench.config.stage import Plan, PlannedArm
from bench.errors import BenchError
from bench.runs.run import Record, Run, Status
from bench.runs.store import read_plan, run_of

BARS = "▁▂▃▄▅▆▇█"
SPARKS = 12  # points of a sparkline
OVER = ("done", "failed", "blocked")  # states in which no worker will change a stage
# Which of several seeds is shown: the busiest.
BUSIEST_FIRST = ("running", "failed", "interrupted", "blocked", "pending", "done")


@dataclass(frozen=True, slots=True)
class SeedProgress:
    """One stage of one seed."""

    run: Run
    status: Status
    blocked: bool  # by an earlier stage that failed

    @property
    def state(self) -> str:
        """The state in its run folder, or blocked."""
        return "blocked" if self.blocked else self.status.state


@dataclass(frozen=True, slots=True)
class StageProgress:
    """One stage of one arm, all seeds together."""

    state: str  # of the busiest seed: done, running, failed, interrupted, pending or blocked
    done: int
    seeds: int
    now: dict[str, Any] = field(default_factory=dict)  # its progress.json while it runs
    line: str = ""  # sparkline of its score or loss so far
    error: str = ""


@dataclass(frozen=True, slots=True)
class StudyProgress:
    """All stages of a study by arm and role, in the plan's order."""

    study: str
    roles: tuple[str, ...]  # the columns: kinds of stages, in the order in which they run
    rows: tuple[tuple[str, dict[str, StageProgress]], ...]  # label of the arm, cells by role
    finished: int  # stages that are done
    total: int

    @property
    def over(self) -> bool:
        """Whether no stage can still change."""
        return all(cell.state in OVER for _, cells in self.rows for cell in cells.values())


def study_progress(plan: Plan, output: Path) -> StudyProgress:
    """The progress of every stage of a plan, read from its run folder."""
    runs = {key: run_of(output, stage) for key, stage in plan.stages.items()}
    statuses = {key: _status(run) for key, run in runs.items()}
    blocked = _blocked(plan, statuses)
    roles = tuple(dict.fromkeys(role for arm in plan.arms for seed in arm.stages.values() for role in seed))
    seeds = {key: SeedProgress(runs[key], status, key in blocked) for key, status in statuses.items()}
    rows = tuple((_label(plan, arm), _cells(arm, seeds)) for arm in plan.arms)
    finished = sum(status.state == "done" for status in statuses.values())
    return StudyProgress(plan.study.name, _sort_roles(roles), rows, finished, len(statuses))


def _status(run: Run) -> Status:
    try:
        return run.status()
    except BenchError as error:
        return Status(state="failed", error=str(error))


def _blocked(plan: Plan, statuses: dict[str, Status]) -> set[str]:
    """Keys of the stages that wait for one that failed."""
    blocked: set[str] = set()
    for key, status in statuses.items():  # parents stand before their children in a plan
        parents = plan.stages[key].parents.values()
        if status.state == "pending" and any(statuses[at].state == "failed" or at in blocked for at in parents):
            blocked.add(key)
    return blocked


def _label(plan: Plan, arm: PlannedArm) -> str:
    several = len({other.task for other in plan.arms}) > 1
    return f"{arm.label}, {arm.task}" if several else arm.label


def _sort_roles(roles: Sequence[str]) -> tuple[str, ...]:
    """Roles in the order in which an arm runs them, whichever arm named them first."""
    order = ("tokenizer", "teacher", "supervised", "pretrain", "finetune-", "finetune", "probe", "evaluate")
    places = {role: next((n for n, name in enumerate(order) if role.startswith(name)), len(order)) for role in roles}
    return tuple(sorted(roles, key=lambda role: (places[role], role == "finetune")))


def _cells(arm: PlannedArm, seeds: dict[str, SeedProgress]) -> dict[str, StageProgress]:
    """The stages of an arm by role; a stage that its seeds share counts once."""
    keys: dict[str, list[str]] = {}
    for by_role in arm.stages.values():
        for role, key in by_role.items():
            if key not in keys.setdefault(role, []):
                keys[role].append(key)
    return {role: _cell([seeds[key] for key in own]) for role, own in keys.items()}


def _cell(seeds: list[SeedProgress]) -> StageProgress:
    """All seeds of a stage; state, position and sparkline are those of the busiest one."""
    busiest = min(seeds, key=lambda seed: BUSIEST_FIRST.index(seed.state))
    state, run = busiest.state, busiest.run
    done = sum(seed.state == "done" for seed in seeds)
    now = position(run) if state in ("running", "interrupted") else {}
    line = sparkline(_curve(run)) if state in ("running", "interrupted", "done") else ""
    return StageProgress(state, done, len(seeds), now, line, busiest.status.error)


def _curve(run: Run) -> list[float]:
    """Scores on `val` while training, where a stage has them, else its training losses."""
    try:
        records = run.records()
    except BenchError:
        return []
    return _values(records, "val", ("top1", "mIoU")) or _values(records, "train", ("loss",))


def _values(records: Sequence[Record], split: str, metrics: tuple[str, ...]) -> list[float]:
    return [record.value for record in records if record.split == split and record.metric in metrics]


def sparkline(values: Sequence[float]) -> str:
    """Numbers as a row of bars scaled from their lowest to their highest, thinned to at most `SPARKS`."""
    if len(values) < 2:
        return ""
    points = min(SPARKS, len(values))
    thin = [values[round(i * (len(values) - 1) / (points - 1))] for i in range(points)]
    low, high = min(thin), max(thin)
    span = (high - low) or 1.0  # a flat line is drawn at the bottom
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in thin)


def cell_text(cell: StageProgress | None) -> str:
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
    """The progress as rows of text, a column for each role."""
    return [{"arm": label, **{role: cell_text(cells.get(role)) for role in table.roles}} for label, cells in table.rows]


def errors(table: StudyProgress) -> list[str]:
    """Error messages of the stages that failed, with arm and role."""
    cells = [(f"{label}, {role}", cell) for label, by_role in table.rows for role, cell in by_role.items()]
    return [f"{where}: {cell.error}" for where, cell in cells if cell.error]


def watch(output: Path, study: str, show: Callable[[StudyProgress], None], interval: float) -> None:
    """Show the progress of a study every `interval` seconds, until every stage is done, failed or blocked."""
    while True:
        table = study_progress(read_plan(output, study), output)  # the plan anew: it may have been planned again
        show(table)
        if table.over:
            return
        time.sleep(interval)
