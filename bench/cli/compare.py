"""bench compare and diff: the report of a study; differences between two reports, arms or runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import Json, OutputDir
from bench.cli.output import emit
from bench.errors import BenchError, ExitCode


def compare(
    study: Annotated[str, typer.Argument(help="A study that was run, or a report.json.")],
    other: Annotated[str, typer.Argument(help="A second report.json, to compare with the first.")] = "",
    allow: Annotated[
        list[str] | None, typer.Option(help="Compare rows although they differ in this protocol key. Repeatable.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit code 3 when the data do not support a claim.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Rewrite the report whenever a stage ends.")] = False,
    output_dir: OutputDir = Path("results"),
    as_json: Json = False,
) -> None:
    """Write the report of a study: scores, intervals, curves, image grids. Exit code 4 when results are missing.

    Given two report.json files, show what became better or worse. Exit code 3 when something is worse.
    """
    if other or study.endswith(".json"):
        return compare_reports(study, other, as_json)
    from bench import api
    from bench.cli import render_run
    from bench.reporting.follow import changes

    planned = api.stored_plan(study, output_dir)
    for _ in changes(planned, output_dir):
        report = api.compare(planned, output=output_dir, allow=allow or [])
        emit(render_run.report_json(report) if as_json else render_run.report_text(report))
        if report.complete or not watch:
            break
    if check and not all(claim.supported for claim in report.claims):
        raise typer.Exit(ExitCode.UNSUPPORTED)
    if not report.complete:
        raise typer.Exit(ExitCode.INCOMPLETE)


def compare_reports(first: str, second: str, as_json: bool) -> None:
    """Print what changed between two report.json files."""
    from bench.cli.formatting import format_rows
    from bench.reporting import report_diff

    if not (first.endswith(".json") and second.endswith(".json")):
        raise BenchError(f"compare {first} {second}: name one study that was run, or two report.json".rstrip())
    changes = report_diff.changes(*(report_diff.read(Path(name)) for name in (first, second)))
    emit([asdict(change) for change in changes] if as_json else format_rows(report_diff.rows(changes)))
    if any(change.verdict == "worse" for change in changes):
        raise typer.Exit(ExitCode.UNSUPPORTED)


def diff(
    first: Annotated[str, typer.Argument(help="An arm's label or id (with --study), or a run's folder.")],
    second: Annotated[str, typer.Argument(help="The other one.")],
    study: Annotated[str, typer.Option(help="The study that the arms belong to.")] = "",
    output_dir: OutputDir = Path("results"),
    as_json: Json = False,
) -> None:
    """Show every value that differs between two arms or runs: varied on purpose, a consequence, or unexplained."""
    from bench.cli import render_run
    from bench.runs import diff as value_diff

    names = first, second
    values = value_diff.diff_arms(output_dir, study, names) if study else value_diff.diff_runs(output_dir, names)
    emit([value._asdict() for value in values] if as_json else render_run.differences_text(values))
