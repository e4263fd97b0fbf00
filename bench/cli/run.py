"""bench plan, run and evaluate: resolve the stages, run them, score checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.options import CheckpointOptions, Json, MachineOptions, StudyOptions, takes
from bench.cli.output import emit, log

if TYPE_CHECKING:
    from bench.launch.scheduler import Watcher

Interval = Annotated[float, typer.Option(min=0.1, help="Seconds between progress lines when stderr is not a terminal.")]


@takes(StudyOptions, MachineOptions)
def plan(
    study: StudyOptions,
    machine: MachineOptions,
    explain: Annotated[str, typer.Option(help="Show where a value comes from, like finetune.lr.")] = "",
    probe: Annotated[bool, typer.Option("--probe", help="Run a few steps of each stage to estimate the time.")] = False,
    as_json: Json = False,
) -> None:
    """Show every stage of a study, with its cost and its departures from the papers. Runs nothing."""
    show_plan(study, machine, explain=explain, probe=probe, as_json=as_json)


def show_plan(
    study: StudyOptions, machine: MachineOptions, *, explain: str = "", probe: bool = False, as_json: bool = False
) -> None:
    """Print a plan with its forecast; with `explain` one value's assignments instead."""
    from bench import api
    from bench.cli import render_plan
    from bench.cli.requests import study_selection
    from bench.launch.local import check_batches
    from bench.planning import forecast, planner

    selection, output = study_selection(study), machine.output_dir
    planned = api.resolve(selection, output, data_required=probe)
    check_batches(planned.plan, machine.resources())
    if explain:
        return emit(render_plan.assignments_text(planner.explain(planned, explain)))
    speeds = api.probe_speeds(selection, **machine.values()) if probe else forecast.speeds(output)
    forecasts = forecast.forecast(planned.plan, output, speeds)
    emit(render_plan.plan_json(planned, forecasts) if as_json else render_plan.plan_text(planned.plan, forecasts))


@takes(StudyOptions, MachineOptions)
def run(
    study: StudyOptions,
    machine: MachineOptions,
    restart_failed: Annotated[
        bool, typer.Option("--restart-failed", help="Run failed stages again from the start.")
    ] = False,
    interval: Interval = 15.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, like bench plan, and run nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the unfinished stages of a study or of an ad-hoc comparison; the same command resumes after a stop."""
    if dry_run:
        return show_plan(study, machine, as_json=as_json)
    from bench import api
    from bench.cli import render_run
    from bench.cli.requests import study_selection

    planned = api.resolve(study_selection(study), machine.output_dir, data_required=True).plan
    how = {**machine.values(), "max_unreadable": study.max_unreadable, "restart_failed": restart_failed}
    with shown_progress(interval) as watcher:
        outcome = api.run(planned, watcher=watcher, **how)
    if as_json:
        emit(render_run.outcome_json(planned, outcome))
    else:
        emit(render_run.outcome_text(planned, outcome, machine.output_dir))
    raise typer.Exit(outcome.exit_code)


@takes(CheckpointOptions, MachineOptions)
def evaluate(
    checkpoints: CheckpointOptions, machine: MachineOptions, interval: Interval = 15.0, as_json: Json = False
) -> None:
    """Evaluate checkpoints on a task: scores with intervals, the protocol, and published numbers of such weights."""
    from bench import api
    from bench.cli.requests import checkpoint_selection
    from bench.reporting import checkpoint_scores

    planned = api.plan_evaluations(checkpoint_selection(checkpoints), machine.output_dir)
    with shown_progress(interval) as watcher:
        outcome = api.run(planned, watcher=watcher, max_unreadable=checkpoints.max_unreadable, **machine.values())
    summaries = checkpoint_scores.summaries(planned, machine.output_dir)
    emit(summaries if as_json else checkpoint_scores.text(summaries))
    for reason in outcome.reasons.values():
        log(reason)
    raise typer.Exit(outcome.exit_code)


@contextmanager
def shown_progress(interval: float) -> Iterator[Watcher]:
    """Show progress on stderr inside the with block: bars on a terminal, a line per `interval` seconds elsewhere."""
    from bench.cli import progress

    watcher = progress.watcher(log, interval)
    try:
        yield watcher
    finally:
        watcher.close()
