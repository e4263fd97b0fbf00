"""The command line: parse, call one function, print. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import logging
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bench.options import Json, Machine, OutputDir, Selection, takes
from bench.spec import BenchError

USAGE, INCOMPLETE, INTERRUPTED = 2, 4, 130


class Commands(TyperGroup):
    """Shows a user's mistake as one line on stderr, with exit code 2; a mistake of ours keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BenchError as error:
            typer.echo(f"bench: {error}", err=True)
            raise typer.Exit(USAGE) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader, like head, has had enough
            raise typer.Exit(0) from None


app = typer.Typer(
    cls=Commands,
    help="Which way of training a Vision Transformer is better, by how much, at what cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={
        "token_normalize_func": lambda word: word.replace("_", "-"),
        "help_option_names": ["-h", "--help"],
    },
)


class Listed(StrEnum):
    """What `bench list` can show."""

    methods = "methods"
    tasks = "tasks"
    studies = "studies"
    runs = "runs"


@app.callback()
def prepare() -> None:
    """Which way of training a Vision Transformer is better, by how much, at what cost."""
    level = os.environ.get("BENCH_LOG_LEVEL", "WARNING").upper()
    if level not in logging.getLevelNamesMapping():
        raise BenchError(f"BENCH_LOG_LEVEL={level}: write DEBUG, INFO, WARNING or ERROR")
    logging.basicConfig(level=level, format="%(levelname)s %(message)s", stream=sys.stderr)


@app.command("list")
def list_(
    what: Annotated[Listed, typer.Argument(help="methods, tasks, studies or runs")],
    include: Annotated[list[Path] | None, typer.Option(help="A folder with more tasks and studies.")] = None,
    output_dir: OutputDir = Path("results"),
    as_json: Json = False,
) -> None:
    """What there is: methods with their variants, tasks, studies, runs."""
    from bench import listing, views

    rows = listing.rows(what.value, include or [], output_dir)
    _print(rows if as_json else views.aligned(rows))


@app.command()
@takes(Selection, Machine)
def plan(
    selection: Selection,
    machine: Machine,
    explain: Annotated[str, typer.Option(help="Say who wrote a value: finetune.lr.")] = "",
    probe: Annotated[bool, typer.Option("--probe", help="Run a few steps of each stage to know the time.")] = False,
    as_json: Json = False,
) -> None:
    """Decide every stage and show it, with its costs and what departs from the papers. Runs nothing."""
    from bench import forecast, views
    from bench import plan as planning
    from bench.asking import execution, request
    from bench.launch.local import check_batches

    asked = request(selection)
    drawn = planning.draw_up(asked)
    check_batches(drawn.plan, execution(machine))
    if explain:
        return _print(views.explained(planning.explain(drawn, explain)))
    speeds = forecast.probe(asked, _walker(selection, machine)) if probe else forecast.speeds(machine.output_dir)
    forecasts = forecast.forecast(drawn.plan, machine.output_dir, speeds)
    _print(views.plan_json(drawn, forecasts) if as_json else views.plan_text(drawn.plan, forecasts))


@app.command()
@takes(Selection, Machine)
def run(
    selection: Selection,
    machine: Machine,
    restart_failed: Annotated[bool, typer.Option("--restart-failed", help="Failed stages begin anew.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between lines without a terminal.")] = 15.0,
    as_json: Json = False,
) -> None:
    """Run what is not finished of a study or of an ad-hoc comparison; the same command goes on after a stop."""
    from bench import progress, views
    from bench.asking import execution, request
    from bench.plan import make_plan
    from bench.run import run_plan

    planned = make_plan(request(selection))
    watcher = progress.watcher(_log, interval)
    try:
        outcome = run_plan(
            planned,
            machine.output_dir,
            execution(machine, selection.max_unreadable),
            watcher,
            restart_failed=restart_failed,
        )
    finally:
        watcher.close()
    told = views.outcome_json(planned, outcome) if as_json else views.outcome_text(planned, outcome, machine.output_dir)
    _print(told)
    raise typer.Exit(outcome.exit_code)


@app.command()
def compare(
    study: Annotated[str, typer.Argument(help="A study that was run.")],
    output_dir: OutputDir = Path("results"),
    as_json: Json = False,
) -> None:
    """Write the report of a study: table, curves, intervals, pictures. Exit code 4 when results are missing."""
    from bench import store, views
    from bench.compare import compare as make_report

    planned = store.read_plan(output_dir, Path(study).stem if study.endswith(".toml") else study)
    report = make_report(planned, output_dir, output_dir / "reports" / planned.study.name)
    _print(views.report_json(report) if as_json else views.report_text(report))
    if not report.complete:
        raise typer.Exit(INCOMPLETE)


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="A run's folder, or the beginning of its name or key.")],
    output_dir: OutputDir = Path("results"),
    as_json: Json = False,
) -> None:
    """All about one run: state, attempts, results, last records, every value with its origin."""
    from bench import store, views

    found = store.find_run(output_dir, run)
    _print(views.run_json(found) if as_json else views.run_text(found))


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="A task, study or method file.")],
    include: Annotated[list[Path] | None, typer.Option(help="A folder with more tasks and studies.")] = None,
) -> None:
    """Check a file: its keys, its types, and the names it speaks of."""
    from bench import listing

    _print(f"{file}: {listing.validate(file, include or [])}")


@app.command()
def version() -> None:
    """The versions that results depend on."""
    import bench
    from bench.environment import commit, versions

    found = commit()
    dirty = " with changes" if found["dirty"] else ""
    _print(f"bench {bench.__version__}" + (f" ({found['commit'][:12]}{dirty})" if found["commit"] else ""))
    _print("\n".join(f"{name} {number}" for name, number in versions().items()))


def _walker(selection: Selection, machine: Machine) -> Any:
    """Runs a plan in a folder without a word."""
    from bench.asking import execution
    from bench.progress import Silent
    from bench.run import run_plan

    how = execution(machine, selection.max_unreadable)
    return lambda plan, folder: run_plan(plan, folder, how, Silent())


def _print(what: Any) -> None:
    """Text as it is, anything else as JSON, to stdout."""
    typer.echo(what if isinstance(what, str) else json.dumps(what, indent=1))


def _log(line: str) -> None:
    typer.echo(line, err=True)


def main() -> None:
    """The console script."""
    app(prog_name="bench")
