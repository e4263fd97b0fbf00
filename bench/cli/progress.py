"""Progress of `bench run` on the screen: bars on a terminal, else one line per interval.

Read from the files of the runs, so a worker does the same whether its progress is shown or not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.config.stage import Plan, Stage
from bench.errors import BenchError
from bench.launch.scheduler import Result, Watcher
from bench.runs.run import Run

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

INTERVAL_SECONDS = 15.0
Log = Callable[[str], None]  # writes a line


def stage_name(stage: Stage) -> str:
    """A stage in a few words: kind, method, task, seed."""
    method = f"{stage.method}:{stage.variant}" if stage.variant else stage.method
    return f"{stage.kind} {method} {stage.task} seed {stage.seed}"


def position(run: Run) -> dict[str, Any]:
    """The progress.json of a run: step, speed, loss, time left; {} before its worker wrote one."""
    try:
        return run.progress() or {}
    except BenchError:
        return {}  # replaced while it was read, on a file system without atomic renames; the next read will succeed


def describe(now: Mapping[str, Any]) -> str:
    """'step 120 of 800, 812 images/s, loss 4.21, waits 3 %, 1:20 left' from a progress file."""
    if not now:
        return "starting"
    words = [f"step {now.get('step', 0):,} of {now.get('steps', 0):,}"]
    if now.get("images_per_second"):
        words.append(f"{now['images_per_second']:,.0f} images/s")
    if isinstance(now.get("loss"), float):
        words.append(f"loss {now['loss']:.4g}")
    if isinstance(now.get("data_wait"), float):
        words.append(f"waits {100 * now['data_wait']:.0f} % for data")
    if isinstance(now.get("eta_seconds"), (int, float)):
        words.append(f"{duration(now['eta_seconds'])} left")
    if now.get("warning"):
        words.append(f"WARNING: {now['warning']}")
    return ", ".join(words)


def duration(seconds: float) -> str:
    """'45 s', '3:20', '2:03:20', '5 d 2 h'."""
    whole = max(0, round(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days > 1:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours}:{minutes % 60:02d}:{whole % 60:02d}"
    return f"{minutes}:{whole % 60:02d}" if minutes else f"{whole} s"


class StageLog(Watcher):
    """A line when a stage starts or ends; base of all ways to show progress."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.total = self.finished = 0
        # Stages launched together run one after another: each counts from the end of the one before it.
        self.since: dict[str, float] = {}
        self.launches: list[set[str]] = []  # keys of the stages launched together
        self.began = time.monotonic()

    def begin(self, plan: Plan, finished: int) -> None:
        self.total, self.finished = len(plan.stages), finished
        self.log(f"{plan.study.name}: {self.total} stages, {finished} of them already done")

    def started(self, stages: Sequence[Stage], run: Run) -> None:
        self.launches.append({stage.key for stage in stages})
        self.since.update(dict.fromkeys((stage.key for stage in stages), time.monotonic()))
        self.log(f"start   {' + '.join(stage_name(stage) for stage in stages)}; logs in {run.root}")

    def ended(self, stage: Stage, run: Run, result: Result, reason: str) -> None:
        self.finished += result == "done"
        ran = result != "blocked" and stage.key in self.since
        took = f" after {duration(time.monotonic() - self.since[stage.key])}" if ran else ""
        why = f": {reason}" if reason else ""
        self.log(f"{result:7} {stage_name(stage)} ({run.root.name}){took}{why}")
        for keys in self.launches:
            if stage.key in keys:
                self.since.update(dict.fromkeys(keys, time.monotonic()))

    def waiting(self, stage: Stage, holder: Mapping[str, Any]) -> None:
        place = str(holder.get("host", "")).partition("/")[0]
        self.log(f"wait    {stage_name(stage)}: process {holder.get('pid')} on {place} is working on it")

    def stopping(self) -> None:
        self.log("stopping at the next step, with a checkpoint; press Ctrl-C again to stop without one")

    def tick(self, running: Sequence[tuple[Stage, Run]]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Called once, after the last event."""


class ProgressLines(StageLog):
    """One line for each running stage per interval."""

    def __init__(self, log: Log, interval: float = INTERVAL_SECONDS) -> None:
        super().__init__(log)
        self.interval, self.last = interval, time.monotonic()

    def tick(self, running: Sequence[tuple[Stage, Run]]) -> None:
        if time.monotonic() - self.last < self.interval:
            return
        self.last = time.monotonic()
        for stage, run in running:
            self.log(f"{self.finished}/{self.total}    {stage_name(stage)}: {describe(position(run))}")


class ProgressBars(StageLog):
    """A bar for the study and one for each running stage."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(progress.console.print)
        self.progress = progress
        self.bars: dict[str, TaskID] = {}
        self.study: TaskID | None = None

    def begin(self, plan: Plan, finished: int) -> None:
        super().begin(plan, finished)
        self.study = self.progress.add_task(plan.study.name, total=self.total, completed=finished, text="")
        self.progress.start()

    def ended(self, stage: Stage, run: Run, result: Result, reason: str) -> None:
        super().ended(stage, run, result, reason)
        if stage.key in self.bars:
            self.progress.remove_task(self.bars.pop(stage.key))

    def tick(self, running: Sequence[tuple[Stage, Run]]) -> None:
        for stage, run in running:
            if stage.key not in self.bars:
                self.bars[stage.key] = self.progress.add_task(stage_name(stage), total=None, text="starting")
            now = position(run)
            self.progress.update(
                self.bars[stage.key], completed=now.get("step", 0), total=now.get("steps"), text=describe(now)
            )
        if self.study is not None:
            text = f"{self.finished} of {self.total} stages, {duration(time.monotonic() - self.began)}"
            self.progress.update(self.study, completed=self.finished, text=text)

    def close(self) -> None:
        self.progress.stop()


def watcher(log: Log, interval: float) -> StageLog:
    """Bars where standard error is a terminal, else lines through `log`; standard output is for results."""
    return _bars() if sys.stderr.isatty() else ProgressLines(log, interval)


def _bars() -> ProgressBars:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True, highlight=False)
    name, text = TextColumn("{task.description}"), TextColumn("{task.fields[text]}")
    return ProgressBars(Progress(name, BarColumn(bar_width=24), text, console=console))
