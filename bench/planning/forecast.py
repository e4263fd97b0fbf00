"""Forecast: the costs of a plan, and its time by the measured speed of earlier runs or of a probe."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
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

PROBE_STEPS = 10  # of every training stage


class Speeds(NamedTuple):
    """Measured speeds."""

    images: dict[str, float]  # per second, by `likeness`
    flops: float | None  # per second over all stages, for a stage like none of them; None: nothing was ever run


class Forecast(NamedTuple):
    """One stage of a plan before it starts."""

    stage: Stage
    state: str
    cost: Cost
    seconds: float | None  # None: no speed was ever measured


def forecast(plan: Plan, output: Path, speeds: Speeds) -> list[Forecast]:
    """State, cost and expected time of every stage, in the plan's order."""
    forecasts = []
    for stage in plan.stages.values():
        expected = cost(stage, plan.stages)
        forecasts.append(Forecast(stage, _state(run_of(output, stage)), expected, _seconds(stage, expected, speeds)))
    return forecasts


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
    """A hash of what decides how fast a stage runs."""
    recipe = stage.recipe
    part = [recipe.precision, recipe.batch_size] if recipe else []
    return digest([stage.kind, stage.method, stage.model.model_dump(mode="json"), stage.options, part])


def speeds(output: Path) -> Speeds:
    """The speed of the finished trainings under `output`: medians."""
    images: dict[str, list[float]] = {}
    flops = []
    for run in all_runs(output):
        results = _training_results(run)
        if results and results.get("images_per_second"):
            images.setdefault(likeness(run.stage()), []).append(results["images_per_second"])
            if results.get("flops") and results.get("seconds"):
                flops.append(results["flops"] / results["seconds"])
    by_kind = {alike: statistics.median(rates) for alike, rates in images.items()}
    return Speeds(by_kind, statistics.median(flops) if flops else None)


def _training_results(run: Run) -> dict[str, Any] | None:
    """The results of a finished training, else None."""
    try:
        return run.results() if run.is_done() and run.stage().recipe else None
    except BenchError:
        return None  # a run of another version tells nothing about this one's speed


def probe(request: Request, run_plan: Callable[[Plan, Path], PlanOutcome]) -> Speeds:
    """Measure the speed of a few steps of every stage, for one seed, run by `run_plan` in a temporary folder."""
    plan = make_plan(request)
    batches = [stage.recipe.batch_size for stage in plan.stages.values() if stage.recipe]
    short = {"epochs": 1, "warmup_epochs": 0, "warmup_steps": 0, "eval_every_epochs": 0, "checkpoint_every_epochs": 0}
    options = {f"{kind}.{name}": value for kind in TRAINED for name, value in short.items()}
    overrides = request.overrides
    overrides = overrides._replace(sets=_without(overrides, short), options=overrides.options | options)
    study = request.study.model_copy(update={"seeds": request.study.seeds[:1], "name": "probe"})
    shortened = replace(request, study=study, overrides=overrides, limit=float(PROBE_STEPS * max(batches)))
    with tempfile.TemporaryDirectory(prefix="bench-probe-") as folder:
        outcome = run_plan(make_plan(shortened), Path(folder))
        if outcome.exit_code:
            reasons = "; ".join(outcome.reasons.values())
            raise BenchError(f"the probe did not finish: {reasons}")
        return speeds(Path(folder))


def _without(overrides: UserOverrides, names: Mapping[str, Any]) -> dict[str, Any]:
    """The --set values without those that the probe sets itself: --set would win over its options."""
    return {address: value for address, value in overrides.sets.items() if address.rpartition(".")[2] not in names}
