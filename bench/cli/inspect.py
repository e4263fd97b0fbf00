"""bench list, watch, show, validate and version: look at what is there."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import Json, OutputDir
from bench.cli.output import emit


class Listed(StrEnum):
    """What `bench list` can show."""

    methods = "methods"
    tasks = "tasks"
    studies = "studies"
    runs = "runs"


def list_(
    what: Annotated[Listed, typer.Argument(help="methods, tasks, studies or runs")],
    include: Annotated[list[Path] | None, typer.Option(help="A folder with more tasks and studies.")] = None,
    output_dir: OutputDir = Path("results"),
    as_json: Json = False,
) -> None:
    """List methods with their variants, tasks, studies or runs."""
    from bench.cli import catalog, formatting

    rows = catalog.rows(what.value, include or [], output_dir)
    emit(rows if as_json else formatting.format_rows(rows))


def watch(
    study: Annotated[str, typer.Argument(help="A study that is running, on this machine or another.")],
    output_dir: OutputDir = Path("results"),
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between updates.")] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Print the progress once and exit.")] = False,
) -> None:
    """Show the progress of a running study, arms x stages, from its run folders. Ctrl-C leaves the study running."""
    from bench.cli import render_run, watch
    from bench.runs.store import read_plan

    if once:
        return emit(render_run.watch_text(watch.study_progress(read_plan(output_dir, study), output_dir)))
    with render_run.screen() as show:
        watch.watch(output_dir, study, show, interval)


def show(
    run: Annotated[str, typer.Argument(help="A run's folder, or the beginning of its name or key.")],
    output_dir: OutputDir = Path("results"),
    as_json: Json = False,
) -> None:
    """Show one run: state, attempts, results, last records, and every value with its origin."""
    from bench.cli import render_run
    from bench.runs.store import find_run

    stored = find_run(output_dir, run)
    emit(render_run.run_json(stored) if as_json else render_run.run_text(stored))


def validate(
    file: Annotated[Path, typer.Argument(help="A task, study or method file.")],
    include: Annotated[list[Path] | None, typer.Option(help="A folder with more tasks and studies.")] = None,
) -> None:
    """Check a task, study or method file: its keys, types, and the names it refers to."""
    from bench.cli import catalog

    kind = catalog.validate(file, include or [])
    if kind.startswith("a study"):
        check_links(file, include or [])
    emit(f"{file}: {kind}")


def check_links(study: Path, include: list[Path]) -> None:
    """Raise BenchError when a claim names an arm, or an arm a published row, that does not exist."""
    from bench.config.registry import places, read_study_file
    from bench.planning.planner import plan_without_data
    from bench.reporting import published
    from bench.reporting.analysis import claims

    plan = plan_without_data(read_study_file(study), places(include))
    claims.check(plan)
    published.check(plan, published.default_path())


def version() -> None:
    """Print the versions of bench and of the packages that results depend on."""
    from bench.environment import commit, versions
    from bench.version import __version__

    source = commit()
    dirty = " with changes" if source["dirty"] else ""
    emit(f"bench {__version__}" + (f" ({source['commit'][:12]}{dirty})" if source["commit"] else ""))
    emit("\n".join(f"{name} {number}" for name, number in versions().items()))
