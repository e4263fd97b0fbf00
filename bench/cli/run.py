"""bench plan, run and evaluate: decide the stages, bring them to their end, score pretrained weights."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bench.cli.options import Json, Machine, Selection, Weights, takes
from bench.cli.output import emit, log


@takes(Selection, Machine)
def plan(
    selection: Selection,
    machine: Machine,
    explain: Annotated[str, typer.Option(help="Say who wrote a value: finetune.lr.")] = "",
    probe: Annotated[bool, typer.Option("--probe", help="Run a few steps of each stage to know the time.")] = False,
    as_json: Json = False,
) -> None:
    """Decide every stage and show it, with its costs and what departs from the papers. Runs nothing."""
    _plan(selection, machine, explain=explain, probe=probe, as_json=as_json)


def _plan(selection: Selection, machine: Machine, *, explain: str = "", probe: bool = False, as_json: bool) -> None:
    from bench.cli import render_plan
    from bench.cli.requests import check_starts, request
    from bench.launch.local import check_batches
    from bench.planning import forecast, planner
    from bench.planning.request import ASSUME_PUBLISHED, DataProbe

    asked = request(selection, machine.output_dir)
    planned = planner.plan_with_history(asked, DataProbe() if probe else ASSUME_PUBLISHED)
    check_batches(planned.plan, machine.resources())
    check_starts(planned.plan, machine.output_dir)
    _check_claims(planned.plan)
    if explain:
        return emit(render_plan.explained(planner.explain(planned, explain)))
    speeds = forecast.probe(asked, _walker(selection, machine)) if probe else forecast.speeds(machine.output_dir)
    forecasts = forecast.forecast(planned.plan, machine.output_dir, speeds)
    emit(render_plan.plan_json(planned, forecasts) if as_json else render_plan.plan_text(planned.plan, forecasts))


@takes(Selection, Machine)
def run(
    selection: Selection,
    machine: Machine,
    restart_failed: Annotated[bool, typer.Option("--restart-failed", help="Failed stages begin anew.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between lines without a terminal.")] = 15.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, as bench plan does; run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Run what is not finished of a study or of an ad-hoc comparison; the same command goes on after a stop."""
    if dry_run:
        return _plan(selection, machine, as_json=as_json)
    from bench.cli import progress, render_run
    from bench.cli.requests import check_starts, request
    from bench.launch.scheduler import run_plan
    from bench.planning.planner import make_plan

    planned = make_plan(request(selection, machine.output_dir))
    check_starts(planned, machine.output_dir)
    _check_claims(planned)
    watcher = progress.watcher(log, interval)
    try:
        outcome = run_plan(
            planned,
            machine.output_dir,
            machine.resources(selection.max_unreadable),
            watcher,
            restart_failed=restart_failed,
        )
    finally:
        watcher.close()
    told = (
        render_run.outcome_json(planned, outcome)
        if as_json
        else render_run.outcome_text(planned, outcome, machine.output_dir)
    )
    emit(told)
    raise typer.Exit(outcome.exit_code)


@takes(Weights, Machine)
def evaluate(
    weights: Weights,
    machine: Machine,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between lines without a terminal.")] = 15.0,
    as_json: Json = False,
) -> None:
    """Score published or own weights on a task: scores, intervals, protocol, and what was published about them."""
    from bench.cli import progress
    from bench.cli.requests import weighed
    from bench.launch.scheduler import run_plan
    from bench.planning import evaluations
    from bench.reporting import checkpoint_scores

    planned = evaluations.plan_evaluations(weighed(weights, machine.output_dir))
    watcher = progress.watcher(log, interval)
    try:
        outcome = run_plan(planned, machine.output_dir, machine.resources(weights.max_unreadable), watcher)
    finally:
        watcher.close()
    found = checkpoint_scores.summaries(planned, machine.output_dir)
    emit(found if as_json else checkpoint_scores.text(found))
    for reason in outcome.reasons.values():
        log(reason)
    raise typer.Exit(outcome.exit_code)


def _check_claims(planned: Any) -> None:
    """BenchError for a claim that cannot be read or names no arm, before anything runs."""
    if planned.study.claims:
        from bench.reporting.analysis.claims import check

        check(planned)


def _walker(selection: Selection, machine: Machine) -> Any:
    """Runs a plan in a folder without a word."""
    from bench.cli.progress import Silent
    from bench.launch.scheduler import run_plan

    resources = machine.resources(selection.max_unreadable)
    return lambda plan, folder: run_plan(plan, folder, resources, Silent())
