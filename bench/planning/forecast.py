"""What a plan will take: its costs, and its time by the speed of earlier runs or of a probe."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.config.precedence import UserOverrides
from bench.config.schema import TRAINED
from bench.config.stage import Plan, Stage, digest
from bench.errors import BenchError
from bench.launch.scheduler import PlanOutcome
from bench.planning.costs import Cost, cost
from bench.planning.planner import make_plan
from bench.planning.request import Request
from bench.runs.run import Run
from bench.runs.store import all_runs, run_of

PROBE_STEPS = 10


class Speeds(NamedTuple):
    """Images per second by kind of work; operations per second over all work, for what was never run."""

    images: dict[str, float]
    flops: float | None


class Forecast(NamedTuple):
    """One stage of a plan before it starts."""

    stage: Stage
    state: str
    cost: Cost
    seconds: float | None  # None: nothing like it was ever run here


def forecast(plan: Plan, output: Path, speeds: Speeds) -> list[Forecast]:
    """State, cost and expected time of every stage, in the plan's order."""
    found = []
    for stage in plan.stages.values():
        run = run_of(output, stage)
        expected = cost(stage, plan.stages)
        found.append(Forecast(stage, _state(run), expected, _seconds(stage, expected, speeds)))
    return found


def _state(run: Run) -> str:
    status = run.status()
    if status.state == "done":
        return "done" if run.is_done() else "damaged"
    return f"{status.state} {status.step}/{status.steps}" if status.step else status.state


def _seconds(stage: Stage, expected: Cost, speeds: Speeds) -> float | None:
    if (rate := speeds.images.get(likeness(stage))) is not None:
        return expected.images / rate
    return expected.flops / speeds.flops if speeds.flops else None


def likeness(stage: Stage) -> str:
    """What decides how fast a stage runs; stages alike in this are expected to run alike."""
    recipe = stage.recipe
    part = [recipe.precision, recipe.batch_size] if recipe else []
    return digest([stage.kind, stage.method, stage.model.model_dump(mode="json"), stage.options, part])


def speeds(output: Path) -> Speeds:
    """How fast the finished trainings under `output` were."""
    images: dict[str, list[float]] = {}
    flops = []
    for run in all_runs(output):
        found = _measured(run)
        if found and found.get("images_per_second"):
            images.setdefault(likeness(run.stage()), []).append(found["images_per_second"])
            if found.get("flops") and found.get("seconds"):
                flops.append(found["flops"] / found["seconds"])
    by_kind = {alike: statistics.median(rates) for alike, rates in images.items()}
    return Speeds(by_kind, statistics.median(flops) if flops else None)


def _measured(run: Run) -> dict[str, Any] | None:
    try:
        return run.results() if run.is_done() and run.stage().recipe else None
    except BenchError:
        return None  # a run of another version tells nothing about this one's speed


def probe(request: Request, walk: Callable[[Plan, Path], PlanOutcome]) -> Speeds:
    """Run a few steps of every stage of one seed in a temporary folder, by `walk`, and see how fast they are."""
    plan = make_plan(request)
    batches = [stage.recipe.batch_size for stage in plan.stages.values() if stage.recipe]
    short = {"epochs": 1, "warmup_epochs": 0, "warmup_steps": 0, "eval_every_epochs": 0, "checkpoint_every_epochs": 0}
    options = {f"{kind}.{name}": value for kind in TRAINED for name, value in short.items()}
    asked = request.overrides
    overrides = asked._replace(sets=_without(asked, short), options=asked.options | options)
    study = request.study.model_copy(update={"seeds": request.study.seeds[:1], "name": "probe"})
    shortened = request._replace(study=study, overrides=overrides, limit=float(PROBE_STEPS * max(batches)))
    with tempfile.TemporaryDirectory(prefix="bench-probe-") as folder:
        outcome = walk(make_plan(shortened), Path(folder))
        if outcome.exit_code:
            reasons = "; ".join(outcome.reasons.values())
            raise BenchError(f"the probe did not finish: {reasons}")
        return speeds(Path(folder))


def _without(overrides: UserOverrides, names: Mapping[str, Any]) -> dict[str, Any]:
    """--set values other than those that a probe decides itself."""
    return {address: value for address, value in overrides.sets.items() if address.rpartition(".")[2] not in names}
