"""Runs a plan: finished stages are skipped, independent ones run in parallel, a failure stops what depends on it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from bench.config.resolve import steps_of
from bench.config.stage import Plan, Stage
from bench.errors import BenchError, ExitCode
from bench.launch import local
from bench.launch.local import Launch, Slot
from bench.launch.settings import Resources
from bench.runs.run import Run
from bench.runs.store import runs_folder, save_plan

POLL_SECONDS = 0.2  # far below the seconds that a stage takes to start
ASK_AGAIN_SECONDS = 2.0  # a worker that was still importing may have missed the first request

Result = Literal["done", "failed", "blocked", "interrupted"]


@dataclass(frozen=True, slots=True)
class Unit:
    """Stages that share one launch, in order: starting a process costs seconds, so following stages share it."""

    stages: tuple[Stage, ...]

    @property
    def needs(self) -> set[str]:
        """Keys of the stages that must be finished before."""
        own = {stage.key for stage in self.stages}
        return {key for stage in self.stages for key in stage.parents.values()} - own


@dataclass(frozen=True, slots=True)
class PlanOutcome:
    """What became of the stages of a plan. `signal`: the number that stopped everything, or 0."""

    results: dict[str, Result]
    reasons: dict[str, str]
    signal: int = 0

    @property
    def exit_code(self) -> int:
        """An ExitCode, or 128 + n where signal n stopped the run."""
        if self.signal:
            return 128 + self.signal
        if "failed" in self.results.values():
            return ExitCode.FAILED
        return ExitCode.INTERRUPTED if "interrupted" in self.results.values() else ExitCode.OK


class Watcher:
    """Called while a plan runs; does nothing here, subclasses show progress. All calls come from one thread."""

    def begin(self, plan: Plan, finished: int) -> None:
        """The run of a plan starts; `finished` stages are done already."""

    def started(self, stages: Sequence[Stage], run: Run) -> None:
        """A launch starts; its logs are in `run`."""

    def ended(self, stage: Stage, run: Run, result: Result, reason: str) -> None:
        """A stage has its result."""

    def waiting(self, stage: Stage, holder: Mapping[str, Any]) -> None:
        """Another process works on a stage; its result will be used."""

    def tick(self, running: Sequence[tuple[Stage, Run]]) -> None:
        """Called at every poll, with the stages that are running."""

    def stopping(self) -> None:
        """Ctrl-C was pressed once."""


def run_plan(
    plan: Plan,
    output: Path,
    resources: Resources,
    watcher: Watcher,
    *,
    restart_failed: bool = False,
    worker: str = local.WORKER,
) -> PlanOutcome:
    """Run every unfinished stage of a plan. Returns the result of each; stores the plan for `bench compare`."""
    local.check_batches(plan, resources)
    root = runs_folder(output)
    save_plan(output, plan)
    runs = {key: Run.open(root, stage) for key, stage in plan.stages.items()}
    if restart_failed:
        for run in runs.values():
            if run.status().state == "failed":
                run.restart()
    with _catch_signals() as caught:
        scheduler = _Scheduler(plan, runs, resources, watcher, caught, worker)
        watcher.begin(plan, len(scheduler.results))
        while scheduler.running or (scheduler.waiting and not caught):
            scheduler.notice()
            scheduler.reap()
            if caught:
                scheduler.ask_to_stop()
            else:
                scheduler.block()
                scheduler.launch_ready()
            watcher.tick([(stage, runs[stage.key]) for stage in scheduler.under_way()])
            time.sleep(POLL_SECONDS)
        for unit in scheduler.waiting:
            scheduler.record_unit_result(unit, "interrupted", "not started")
        return PlanOutcome(scheduler.results, scheduler.reasons, caught[0] if caught else 0)


def units(plan: Plan, done: Callable[[Stage], bool]) -> list[Unit]:
    """The unfinished stages of a plan, grouped into launches, in the plan's order.

    The launch of a training continues with its evaluations and with one training that waits for nothing else. Other
    trainings that wait for the same one start by themselves as soon as it is done, so that none waits for a group.
    """
    unfinished = {key: stage for key, stage in plan.stages.items() if not done(stage)}
    followers: dict[str, list[Stage]] = {}  # key of a stage -> those that share its launch
    heads = []
    for stage in unfinished.values():
        parents = [key for key in stage.parents.values() if key in unfinished]
        if len(parents) == 1 and (stage.kind == "evaluate" or not _has_training(followers, parents[0])):
            followers.setdefault(parents[0], []).append(stage)
        else:
            heads.append(stage)
    return [Unit(tuple(_with_followers(head, followers))) for head in heads]


def _has_training(followers: Mapping[str, Sequence[Stage]], key: str) -> bool:
    return any(stage.kind != "evaluate" for stage in followers.get(key, ()))


def _with_followers(stage: Stage, followers: Mapping[str, Sequence[Stage]]) -> Iterator[Stage]:
    """A stage, its evaluations, then the training that follows in the same launch."""
    yield stage
    for follower in sorted(followers.get(stage.key, ()), key=lambda follower: follower.kind != "evaluate"):
        yield from _with_followers(follower, followers)


def graph_width(waiting: Sequence[Unit]) -> int:
    """The most units on one level of the dependency graph: how many can run in parallel."""
    level: dict[str, int] = {}
    counts: dict[int, int] = {}
    for unit in waiting:
        own = 1 + max((level[key] for key in unit.needs if key in level), default=-1)
        level.update({stage.key: own for stage in unit.stages})
        counts[own] = counts.get(own, 0) + 1
    return max(counts.values(), default=1)


def urgency(waiting: Sequence[Unit]) -> dict[str, int]:
    """First stage of each unit -> images on the longest path from it to an end of the plan (the critical path)."""
    ahead: dict[str, int] = {}
    for unit in reversed(waiting):
        own = sum(_images(stage) for stage in unit.stages)
        keys = {stage.key for stage in unit.stages}
        after = [ahead[other.stages[0].key] for other in waiting if other.needs & keys and other is not unit]
        ahead[unit.stages[0].key] = own + max(after, default=0)
    return ahead


def _images(stage: Stage) -> int:
    return steps_of(stage) * stage.recipe.batch_size if stage.recipe else stage.data["val"].images


def _end_of_log(launch: Launch) -> str:
    return f"{local.stderr_tail(launch)}\n(all of it: {launch.runs[0].path('stderr.log')})"


@contextmanager
def _catch_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM in a list inside the with block; the scheduler decides what to do."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Scheduler:
    """Schedules one run of a plan: its state, and the steps that `run_plan` repeats until nothing is left."""

    def __init__(
        self,
        plan: Plan,
        runs: dict[str, Run],
        resources: Resources,
        watcher: Watcher,
        caught: list[int],
        worker: str,
    ) -> None:
        self.plan, self.runs, self.resources = plan, runs, resources
        self.watcher, self.caught, self.worker = watcher, caught, worker
        self.results: dict[str, Result] = {key: "done" for key, run in runs.items() if run.is_done()}
        self.reasons: dict[str, str] = {}
        self.waiting = units(plan, lambda stage: stage.key in self.results)
        self.urgency = urgency(self.waiting)
        self.free: list[Slot] = local.slots(resources, graph_width(self.waiting)) if self.waiting else []
        self.running: dict[Launch, Unit] = {}
        self.elsewhere: set[str] = set()  # stages that other processes work on
        self.asked_at = 0.0  # when the launches were last asked to stop; 0: never

    def under_way(self) -> list[Stage]:
        """The stage that each launch works on, and those that other processes work on."""
        own = [
            next((stage for stage in unit.stages if self.results.get(stage.key) != "done"), unit.stages[-1])
            for unit in self.running.values()
        ]
        return own + [self.plan.stages[key] for key in self.elsewhere - {stage.key for stage in own}]

    def notice(self) -> None:
        """Record which stages of running launches are done: others may be waiting for them."""
        for unit in self.running.values():
            all(self.is_done(stage) for stage in unit.stages)  # in order, up to the first that is not

    def reap(self) -> None:
        """Record what became of the launches that ended."""
        for launch in [launch for launch in self.running if launch.process.poll() is not None]:
            unit = self.running.pop(launch)
            self.free.append(launch.slot)
            unfinished = [stage for stage in unit.stages if not self.is_done(stage)]
            if unfinished and self.runs[unfinished[0].key].holder() is None:
                self.record_end_of_launch(unfinished.pop(0), launch)
            # What followed in the launch, or is held by another process, waits again: it may need nothing that failed.
            self.waiting += [Unit((stage,)) for stage in unfinished]

    def record_end_of_launch(self, stage: Stage, launch: Launch) -> None:
        """Record the result of the stage that a launch was at when it ended."""
        status = self.runs[stage.key].written_status()
        fresh = status.time >= launch.began
        if fresh and status.state == "failed":
            self.record_result(stage, "failed", f"{status.error}\n{_end_of_log(launch)}")
        elif self.caught or (fresh and status.state == "interrupted"):
            reason = f"after step {status.step} of {status.steps}" if fresh else "not started"
            self.record_result(stage, "interrupted", reason)
        else:  # killed, for want of memory perhaps: the worker could not record anything
            code = launch.process.returncode
            reason = f"its process ended with exit code {code} and recorded no error\n{_end_of_log(launch)}"
            self.record_result(stage, "failed", reason)

    def record_result(self, stage: Stage, result: Result, reason: str = "") -> None:
        """Store the result of a stage and show it."""
        self.results[stage.key] = result
        if reason:
            self.reasons[stage.key] = reason
        self.watcher.ended(stage, self.runs[stage.key], result, reason)

    def record_unit_result(self, unit: Unit, result: Result, reason: str) -> None:
        """The same result for all stages of a unit."""
        for stage in unit.stages:
            self.record_result(stage, result, reason)

    def block(self) -> None:
        """Give up the units that depend on a stage that will not be finished."""
        for unit in list(self.waiting):
            lost = [key for key in unit.needs if self.results.get(key) in ("failed", "blocked", "interrupted")]
            if lost:
                self.waiting.remove(unit)
                cause = self.results[lost[0]]
                result: Result = "interrupted" if cause == "interrupted" else "blocked"
                self.record_unit_result(unit, result, f"needs {self.runs[lost[0]].root.name}, which is {cause}")

    def launch_ready(self) -> None:
        """Start the units that can start, the longest path first; leave to other processes what they work on."""
        for unit in sorted(self.waiting, key=lambda unit: -self.urgency.get(unit.stages[0].key, 0)):
            if any(self.results.get(key) != "done" for key in unit.needs) or self.is_elsewhere(unit):
                continue
            stages = tuple(stage for stage in unit.stages if not self.is_done(stage))
            if stages and not self.free:
                continue
            self.waiting.remove(unit)
            if not stages:
                continue
            slot = self.free.pop()
            try:
                launch = local.start(stages, self.runs, slot, self.resources, self.worker)
            except BenchError as error:
                self.free.append(slot)
                self.record_unit_result(Unit(stages), "failed", str(error))
            else:
                self.running[launch] = Unit(stages)
                self.watcher.started(stages, launch.runs[0])

    def is_elsewhere(self, unit: Unit) -> bool:
        """Whether another process works on a stage of this unit now."""
        for stage in unit.stages:
            holder = self.runs[stage.key].holder()
            if holder is None:
                self.elsewhere.discard(stage.key)
            else:
                if stage.key not in self.elsewhere:
                    self.watcher.waiting(stage, holder)
                self.elsewhere.add(stage.key)
                return True
        return False

    def is_done(self, stage: Stage) -> bool:
        """Whether a stage is done by now, here or by another process; the first time it is, that is recorded."""
        if self.results.get(stage.key) != "done" and self.runs[stage.key].is_done():
            self.record_result(stage, "done")
        return self.results.get(stage.key) == "done"

    def ask_to_stop(self) -> None:
        """After the first signal, ask all launches to stop at a step boundary; after the second, kill them."""
        if len(self.caught) > 1:
            for launch in self.running:
                local.kill(launch)
        elif time.monotonic() - self.asked_at > ASK_AGAIN_SECONDS:
            if not self.asked_at:
                self.watcher.stopping()
            self.asked_at = time.monotonic()
            for launch in self.running:
                local.stop(launch)
