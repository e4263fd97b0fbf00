"""bench import and bench export: checkpoints in and out."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import Json, OutputDir
from bench.cli.output import emit

SOURCE_HELP = "A file, a folder, a run, a hub id, or timm:NAME."
TO_HELP = "Also write it to this folder in bench's own layout, for start_from and bench evaluate."


class Target(StrEnum):
    """The formats of an export."""

    hf = "hf"
    timm = "timm"
    authors = "authors"


def import_(
    source: Annotated[str, typer.Argument(metavar="PATH-OR-ID", help=SOURCE_HELP)],
    partial: Annotated[bool, typer.Option("--partial", help="Accept missing and unexpected tensors.")] = False,
    heads: Annotated[int, typer.Option(min=0, help="Number of attention heads, if the file does not say.")] = 0,
    to: Annotated[Path | None, typer.Option(help=TO_HELP)] = None,
    output_dir: OutputDir = Path("results"),
    as_json: Json = False,
) -> None:
    """Read a published checkpoint and show its network and how each tensor maps to ours; --to converts it."""
    from bench.checkpoints import importer

    located, checkpoint = importer.locate_and_read(source, partial=partial, heads=heads, output=output_dir)
    folder = None if to is None else importer.save(located, checkpoint, to)
    if as_json:
        return emit({**importer.checkpoint_facts(checkpoint), "folder": None if folder is None else str(folder)})
    emit(_render(importer.facts_rows(located, checkpoint), importer.report_rows(checkpoint)))
    if folder is not None:
        emit(f"\nwritten to {folder}; a stage starts from it by --set finetune.start_from={folder}")


def export(
    run: Annotated[str, typer.Argument(help="A run's folder, or the beginning of its name or key.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder, or an earlier export.")],
    to: Annotated[
        Target, typer.Option(help="Format: hf (transformers), timm, or authors (the original code).")
    ] = Target.hf,
    push: Annotated[
        str,
        typer.Option(metavar="REPO", help="Upload to USER/NAME on the Hugging Face hub; a new repository is private."),
    ] = "",
    output_dir: OutputDir = Path("results"),
    as_json: Json = False,
) -> None:
    """Export a trained network: weights, preprocessing, and a model card with results and provenance."""
    from bench.checkpoints import exporter, locate

    written = exporter.export(locate.find(run, output_dir), to.value, folder, output=output_dir, push=push)
    if as_json:
        return emit({**written._asdict(), "folder": str(written.folder)})
    emit(f"{written.run} as {to.value} in {written.folder}: {', '.join(written.files)}")
    if written.url:
        emit(f"pushed to {written.url}")


def _render(facts: list[dict[str, str]], report: list[dict[str, str]]) -> str:
    """What a checkpoint is, then the report on its tensors."""
    from bench.cli.formatting import format_rows

    width = max(len(row["fact"]) for row in facts)
    lines = [f"{row['fact']:{width}}  {row['value']}" for row in facts]
    return "\n".join([*lines, "", format_rows(report)])
