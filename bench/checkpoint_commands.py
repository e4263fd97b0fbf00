"""bench import and bench export: checkpoints in and out."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.options import Json, OutputDir

SOURCE_HELP = "A file, a folder, a run, a hub id, or timm:NAME."
TO_HELP = "A folder for it in bench's own layout, which start_from takes, too."


class Target(StrEnum):
    """Whose format a result is written in."""

    hf = "hf"
    timm = "timm"
    authors = "authors"


def import_(
    source: Annotated[str, typer.Argument(metavar="PATH-OR-ID", help=SOURCE_HELP)],
    partial: Annotated[bool, typer.Option("--partial", help="Go on without what is unexpected or missing.")] = False,
    heads: Annotated[int, typer.Option(min=0, help="Attention heads, where a bare file does not tell.")] = 0,
    to: Annotated[Path | None, typer.Option(help=TO_HELP)] = None,
    output_dir: OutputDir = Path("results"),
    as_json: Json = False,
) -> None:
    """Read a published checkpoint: what it is, and what becomes of each of its tensors."""
    from bench import importing

    found, checkpoint = importing.bring_in(source, partial=partial, heads=heads, output=output_dir)
    folder = None if to is None else importing.save(found, checkpoint, to)
    if as_json:
        return _print({**importing.described(checkpoint), "folder": None if folder is None else str(folder)})
    _print(_read(importing.facts_rows(found, checkpoint), importing.report_rows(checkpoint)))
    if folder is not None:
        _print(f"\nwritten to {folder}; a stage starts from it by --set finetune.start_from={folder}")


def export(
    run: Annotated[str, typer.Argument(help="A run's folder, or the beginning of its name or key.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is new, empty, or an earlier export.")],
    to: Annotated[Target, typer.Option(help="Whose format: transformers', timm's, or the authors'.")] = Target.hf,
    push: Annotated[str, typer.Option(metavar="REPO", help="USER/NAME on the hub; made private if new.")] = "",
    output_dir: OutputDir = Path("results"),
    as_json: Json = False,
) -> None:
    """Write what a run learned for others: weights, preprocessing, and a model card with results and provenance."""
    from bench import exporting, locate

    done = exporting.export(locate.find(run, output_dir), to.value, folder, output=output_dir, push=push)
    if as_json:
        return _print({**done._asdict(), "folder": str(done.folder)})
    _print(f"{done.run} as {to.value} in {done.folder}: {', '.join(done.files)}")
    if done.url:
        _print(f"pushed to {done.url}")


def _read(facts: list[dict[str, str]], report: list[dict[str, str]]) -> str:
    """What a checkpoint is, then its tensors."""
    from bench import views

    width = max(len(row["fact"]) for row in facts)
    lines = [f"{row['fact']:{width}}  {row['value']}" for row in facts]
    return "\n".join([*lines, "", views.aligned(report)])


def _print(what: Any) -> None:
    typer.echo(what if isinstance(what, str) else json.dumps(what, indent=1))
