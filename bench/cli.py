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

from bench import checkpoint_commands
from bench.data_commands import data
from bench.options import Json, Machine, OutputDir, Selection, Weights, takes
from bench.spec import BenchError

USAGE, UNSUPPORTED, INCOMPLETE, INTERRUPTED = 2, 3, 4, 130


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
    _plan(selection, machine, explain=explain, probe=probe, as_json=as_json)


def _plan(selection: Selection, machine: Machine, *, explain: str = "", probe: bool = False, as_json: bool) -> None:
    from bench import forecast, views
    from bench import plan as planning
    from bench.asking import check_starts, execution, request
    from bench.launch.local import check_batches

    asked = request(selection, machine.output_dir)
    drawn = planning.draw_up(asked, planning.Sight() if probe else planning.FORESEEN)
    check_batches(drawn.plan, execution(machine))
    check_starts(drawn.plan, machine.output_dir)
    _check_claims(drawn.plan)
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, as bench plan does; run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Run what is not finished of a study or of an ad-hoc comparison; the same command goes on after a stop."""
    if dry_run:
        return _plan(selection, machine, as_json=as_json)
    from bench import progress, views
    from bench.asking import check_starts, execution, request
    from bench.plan import make_plan
    from bench.run import run_plan

    planned = make_plan(request(selection, machine.output_dir))
    check_starts(planned, machine.output_dir)
    _check_claims(planned)
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
@takes(Weights, Machine)
def evaluate(
    weights: Weights,
    machine: Machine,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between lines without a terminal.")] = 15.0,
    as_json: Json = False,
) -> None:
    """Score published or own weights on a task: scores, intervals, protocol, and what was published about them."""
    from bench import evaluating, progress
    from bench.asking import execution, weighed
    from bench.compare import scored
    from bench.run import run_plan

    planned = evaluating.draw_up(weighed(weights, machine.output_dir))
    watcher = progress.watcher(_log, interval)
    try:
        outcome = run_plan(planned, machine.output_dir, execution(machine, weights.max_unreadable), watcher)
    finally:
        watcher.close()
    found = scored.summaries(planned, machine.output_dir)
    _print(found if as_json else scored.text(found))
    for reason in outcome.reasons.values():
        _log(reason)
    raise typer.Exit(outcome.exit_code)


@app.command()
def compare(
    study: Annotated[str, typer.Argument(help="A study that was run, or a report.json.")],
    other: Annotated[str, typer.Argument(help="A second report.json: what changed since the first.")] = "",
    allow: Annotated[list[str] | None, typer.Option(help="Subtract rows that differ in this protocol key.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit code 3 when the data do not support a claim.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Write it again whenever a stage ends.")] = False,
    output_dir: OutputDir = Path("results"),
    as_json: Json = False,
) -> None:
    """Write the report of a study: table, curves, intervals, pictures. Exit code 4 when results are missing.

    With two report.json, of two versions of a recipe: what became better or worse. Exit code 3 when something is worse.
    """
    if other or study.endswith(".json"):
        return _compare_reports(study, other, as_json)
    from bench import store, views
    from bench.compare import compare as make_report
    from bench.compare.refreshing import changes

    name = Path(study).stem if study.endswith(".toml") else study
    planned = _with_claims_of(study, store.read_plan(output_dir, name))
    for _ in changes(planned, output_dir):
        report = make_report(planned, output_dir, output_dir / "reports" / planned.study.name, allow or [])
        _print(views.report_json(report) if as_json else views.report_text(report))
        if report.complete or not watch:
            break
    if check and not all(claim.supported for claim in report.claims):
        raise typer.Exit(UNSUPPORTED)
    if not report.complete:
        raise typer.Exit(INCOMPLETE)


def _compare_reports(first: str, second: str, as_json: bool) -> None:
    from bench import views
    from bench.compare import regression

    if not (first.endswith(".json") and second.endswith(".json")):
        raise BenchError(f"compare {first} {second}: name one study that was run, or two report.json".rstrip())
    found = regression.changes(*(regression.read(Path(name)) for name in (first, second)))
    _print([one._asdict() for one in found] if as_json else views.aligned(regression.rows(found)))
    if any(one.verdict == "worse" for one in found):
        raise typer.Exit(UNSUPPORTED)


@app.command()
def watch(
    study: Annotated[str, typer.Argument(help="A study that runs, here or elsewhere.")],
    output_dir: OutputDir = Path("results"),
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Look once.")] = False,
) -> None:
    """Arms x stages of a study under way, with progress and curves, from its files alone. Ctrl-C leaves it running."""
    from bench import store, views, watching

    if once:
        return _print(views.watch_text(watching.look(store.read_plan(output_dir, study), output_dir)))
    with views.screen() as show:
        watching.watch(output_dir, study, show, interval)


@app.command()
def diff(
    first: Annotated[str, typer.Argument(help="An arm's label or id (with --study), or a run's folder.")],
    second: Annotated[str, typer.Argument(help="The other one.")],
    study: Annotated[str, typer.Option(help="The study whose arms these are.")] = "",
    output_dir: OutputDir = Path("results"),
    as_json: Json = False,
) -> None:
    """Every value that differs between two arms or runs: on purpose, following from that, or unexplained."""
    from bench import differing, views

    names = first, second
    found = differing.arms(output_dir, study, names) if study else differing.runs(output_dir, names)
    _print([one._asdict() for one in found] if as_json else views.differing_text(found))


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


app.command("import")(checkpoint_commands.import_)
app.command("export")(checkpoint_commands.export)
app.add_typer(data, name="data")


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="A task, study or method file.")],
    include: Annotated[list[Path] | None, typer.Option(help="A folder with more tasks and studies.")] = None,
) -> None:
    """Check a file: its keys, its types, and the names it speaks of."""
    from bench import listing

    what = listing.validate(file, include or [])
    if what.startswith("a study"):
        _check_links(file, include or [])
    _print(f"{file}: {what}")


def _check_links(study: Path, include: list[Path]) -> None:
    """BenchError when a study claims something of an arm, or names a published row, that is not there."""
    from bench import listing
    from bench.compare import claims, published
    from bench.tasks import places, study_from

    plan = listing.unlooked_plan(study_from(study), places(include))
    claims.check(plan)
    published.check(plan, published.default_path())


@app.command()
def version() -> None:
    """The versions that results depend on."""
    import bench
    from bench.environment import commit, versions

    found = commit()
    dirty = " with changes" if found["dirty"] else ""
    _print(f"bench {bench.__version__}" + (f" ({found['commit'][:12]}{dirty})" if found["commit"] else ""))
    _print("\n".join(f"{name} {number}" for name, number in versions().items()))


def _with_claims_of(study: str, planned: Any) -> Any:
    """The plan that was run, with the claims that the study's file makes now."""
    from bench.tasks import study_from

    if not (study.endswith(".toml") and Path(study).exists()):
        return planned
    claims = study_from(Path(study)).claims
    return planned.model_copy(update={"study": planned.study.model_copy(update={"claims": claims})})


def _check_claims(planned: Any) -> None:
    """BenchError for a claim that cannot be read or names no arm, before anything runs."""
    if planned.study.claims:
        from bench.compare.claims import check

        check(planned)


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
