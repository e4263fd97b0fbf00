"""Walking a plan: what is finished is skipped, what can run side by side does, a failure stops what depends on it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

from bench.config.resolve import steps_of
from bench.config.stage import Plan, Stage
from bench.errors import BenchError
from bench.launch import local
from bench.launch.local import Launch, Slot
from bench.launch.settings import Resources
from bench.runs.run import Run
from bench.runs.store import runs_folder, save_plan

POLL_SECONDS = 0.2
ASK_AGAIN_SECONDS = 2.0  # a worker that was still importing did not hear the first request

Result = Literal["done", "failed", "blocked", "interrupted"]


class Unit(NamedTuple):
    """Stages that go through one launch, in order: starting a process costs seconds, so what follows rides along."""

    stages: tuple[Stage, ...]

    @property
    def needs(self) -> set[str]:
        """Keys of the stages that must be finished before."""
        own = {stage.key for stage in self.stages}
        return {key for stage in self.stages for key in stage.parents.values()} - own


class PlanOutcome(NamedTuple):
    """What became of the stages of a plan. `signal`: the number that stopped everything, or 0."""

    results: dict[str, Result]
    reasons: dict[str, str]
    signal: int = 0

    @property
    def exit_code(self) -> int:
        """0 done, 1 a stage failed, 75 interrupted from outside, 128 + n by signal n."""
        if self.signal:
            return 128 + self.signal
        results = set(self.results.values())
        return 1 if "failed" in results else 75 if "interrupted" in results else 0


class Watcher:
    """Called while a plan runs; does nothing here, subclasses show progress. All calls come from one thread."""

    def begin(self, plan: Plan, finished: int) -> None:
        """A walk starts; so many stages are there already."""

    def started(self, stages: Sequence[Stage], run: Run) -> None:
        """A launch starts; its logs are in `run`."""

    def ended(self, stage: Stage, run: Run, result: Result, reason: str) -> None:
        """A stage has met its fate."""

    def waiting(self, stage: Stage, holder: Mapping[str, Any]) -> None:
        """Another process works on a stage; its result will be used."""

    def tick(self, running: Sequence[tuple[Stage, Run]]) -> None:
        """A moment passed."""

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
    """Bring every stage of a plan to its end, or to the reason why it has none. Stores the plan for `bench compare`."""
    local.check_batches(plan, resources)
    root = runs_folder(output)
    save_plan(output, plan)
    runs = {key: Run.open(root, stage) for key, stage in plan.stages.items()}
    if restart_failed:
        for run in runs.values():
            if run.status().state == "failed":
                run.restart()
    with _signals() as caught:
        return _Walk(plan, runs, resources, watcher, caught, worker).go()


def units(plan: Plan, done: Callable[[Stage], bool]) -> list[Unit]:
    """The unfinished stages of a plan, grouped into launches, in the plan's order.

    A training takes its evaluations along, and one training that waits for nothing else; others that wait for the
    same one start by themselves as soon as it is done, so that nothing waits for the sake of a group.
    """
    left = {key: stage for key, stage in plan.stages.items() if not done(stage)}
    rides: dict[str, list[Stage]] = {}
    heads = []
    for stage in left.values():
        awaited = [key for key in stage.parents.values() if key in left]
        if len(awaited) == 1 and (stage.kind == "evaluate" or not _takes_a_training(rides, awaited[0])):
            rides.setdefault(awaited[0], []).append(stage)
        else:
            heads.append(stage)
    return [Unit(tuple(_with_rides(head, rides))) for head in heads]


def _takes_a_training(rides: Mapping[str, Sequence[Stage]], key: str) -> bool:
    return any(stage.kind != "evaluate" for stage in rides.get(key, ()))


def _with_rides(stage: Stage, rides: Mapping[str, Sequence[Stage]]) -> Iterator[Stage]:
    """A stage, its evaluations, then what else rides along with it."""
    yield stage
    for rider in sorted(rides.get(stage.key, ()), key=lambda rider: rider.kind != "evaluate"):
        yield from _with_rides(rider, rides)


def widest(waiting: Sequence[Unit]) -> int:
    """How many units there are at most on one level of the graph: what can run side by side."""
    level: dict[str, int] = {}
    counts: dict[int, int] = {}
    for unit in waiting:
        own = 1 + max((level[key] for key in unit.needs if key in level), default=-1)
        level.update({stage.key: own for stage in unit.stages})
        counts[own] = counts.get(own, 0) + 1
    return max(counts.values(), default=1)


def urgency(waiting: Sequence[Unit]) -> dict[str, int]:
    """First stage of each unit -> images on the longest way from it to an end of the plan."""
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
    return f"{local.last_words(launch)}\n(all of it: {launch.runs[0].path('stderr.log')})"


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Inside, Ctrl-C and SIGTERM are only written down; the walk decides what to do."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Walk:
    """The state of one walk over a plan."""

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
        self.free: list[Slot] = local.slots(resources, widest(self.waiting)) if self.waiting else []
        self.running: dict[Launch, Unit] = {}
        self.elsewhere: set[str] = set()  # stages that other processes work on
        self.asked = 0.0

    def go(self) -> PlanOutcome:
        """Walk until nothing runs and nothing can start."""
        self.watcher.begin(self.plan, len(self.results))
        while self.running or (self.waiting and not self.caught):
            self.notice()
            self.reap()
            if self.caught:
                self.ask_to_stop()
            else:
                self.block()
                self.launch_ready()
            self.watcher.tick([(stage, self.runs[stage.key]) for stage in self.under_way()])
            time.sleep(POLL_SECONDS)
        for unit in self.waiting:
            self.record_unit_result(unit, "interrupted", "not started")
        return PlanOutcome(self.results, self.reasons, self.caught[0] if self.caught else 0)

    def under_way(self) -> list[Stage]:
        """The stage that each launch is at, and those that other processes are at."""
        own = [
            next((stage for stage in unit.stages if self.results.get(stage.key) != "done"), unit.stages[-1])
            for unit in self.running.values()
        ]
        return own + [self.plan.stages[key] for key in self.elsewhere - {stage.key for stage in own}]

    def notice(self) -> None:
        """See which stages of launches under way are done: others may be waiting for them."""
        for unit in self.running.values():
            all(self.found_done(stage) for stage in unit.stages)  # in order, up to the first that is not

    def reap(self) -> None:
        """Take in what became of the launches that ended."""
        for launch in [launch for launch in self.running if launch.process.poll() is not None]:
            unit = self.running.pop(launch)
            self.free.append(launch.slot)
            left = [stage for stage in unit.stages if not self.found_done(stage)]
            if left and self.runs[left[0].key].holder() is None:
                self.result_of_ended_launch(left.pop(0), launch)
            # What rode along, or is done by another bench, waits again: perhaps it needs nothing that failed.
            self.waiting += [Unit((stage,)) for stage in left]

    def result_of_ended_launch(self, stage: Stage, launch: Launch) -> None:
        """The fate of the stage that a launch was at when it ended."""
        status = self.runs[stage.key].written_status()
        fresh = status.time >= launch.began
        if fresh and status.state == "failed":
            self.record_result(stage, "failed", f"{status.error}\n{_end_of_log(launch)}")
        elif self.caught or (fresh and status.state == "interrupted"):
            self.record_result(
                stage, "interrupted", f"after step {status.step} of {status.steps}" if fresh else "not started"
            )
        else:
            code = launch.process.returncode
            self.record_result(
                stage, "failed", f"its process ended without a word, exit code {code}\n{_end_of_log(launch)}"
            )

    def record_result(self, stage: Stage, result: Result, reason: str = "") -> None:
        """Remember the fate of a stage and tell."""
        self.results[stage.key] = result
        if reason:
            self.reasons[stage.key] = reason
        self.watcher.ended(stage, self.runs[stage.key], result, reason)

    def record_unit_result(self, unit: Unit, result: Result, reason: str) -> None:
        """The same fate for all stages of a unit."""
        for stage in unit.stages:
            self.record_result(stage, result, reason)

    def block(self) -> None:
        """Give up what depends on a stage that will not be finished."""
        for unit in list(self.waiting):
            lost = [key for key in unit.needs if self.results.get(key) in ("failed", "blocked", "interrupted")]
            if lost:
                self.waiting.remove(unit)
                why: Result = "interrupted" if self.results[lost[0]] == "interrupted" else "blocked"
                self.record_unit_result(
                    unit, why, f"needs {self.runs[lost[0]].root.name}, which is {self.results[lost[0]]}"
                )

    def launch_ready(self) -> None:
        """Start what can start, the longest way first; leave to others what they are at."""
        for unit in sorted(self.waiting, key=lambda unit: -self.urgency.get(unit.stages[0].key, 0)):
            if any(self.results.get(key) != "done" for key in unit.needs):
                continue
            if self.is_elsewhere(unit):
                continue
            left = Unit(tuple(stage for stage in unit.stages if not self.found_done(stage)))
            if left.stages and not self.free:
                continue
            self.waiting.remove(unit)
            if left.stages:
                self.launch(left)

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

    def found_done(self, stage: Stage) -> bool:
        """Whether a stage is done by now, here or by another process."""
        if self.results.get(stage.key) != "done" and self.runs[stage.key].is_done():
            self.record_result(stage, "done")
        return self.results.get(stage.key) == "done"

    def launch(self, unit: Unit) -> None:
        """Start a unit on a free slot."""
        slot = self.free.pop()
        try:
            launch = local.start(unit.stages, self.runs, slot, self.resources, self.worker)
        except BenchError as error:
            self.free.append(slot)
            return self.record_unit_result(unit, "failed", str(error))
        self.running[launch] = unit
        self.watcher.started(unit.stages, launch.runs[0])

    def ask_to_stop(self) -> None:
        """After the first signal, ask all launches to stop at a step boundary; after the second, end them at once."""
        if len(self.caught) > 1:
            for launch in self.running:
                local.kill(launch)
        elif time.monotonic() - self.asked > ASK_AGAIN_SECONDS:
            if not self.asked:
                self.watcher.stopping()
            self.asked = time.monotonic()
            for launch in self.running:
                local.stop(launch)
