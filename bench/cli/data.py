"""bench data: inspect the data of a task before anything is trained on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import DataDirs, Include, Json, takes
from bench.cli.output import emit
from bench.errors import BenchError, ExitCode

if TYPE_CHECKING:
    from bench.data.duplicates import Fingerprints, Pair
    from bench.data.inspection import InspectedSplit, TaskSplit

MOST_ROWS = 40  # pairs or files in a table; --json has all
GENERATED = "generated"  # instead of a root hash, for data without files
INDEXED = ("split", "images", "files", "bytes", "root hash", "seconds")
SAMPLE = 256  # images of a split that are decoded by default

app = typer.Typer(help="Inspect the data of a task: contents, missing files, duplicates.", no_args_is_help=True)

TaskName = Annotated[str, typer.Argument(help="A task, like imagenet1k.")]


@dataclass
class Where:
    """Where the data are."""

    data_dir: DataDirs = field(default_factory=list)
    unlabelled: Annotated[str, typer.Option(help="A folder of images for pretraining without labels.")] = ""
    include: Include = field(default_factory=list)


@app.command()
@takes(Where)
def check(
    where: Where,
    task: TaskName,
    decode: Annotated[str, typer.Option(help="How many images of each split to decode, or all.")] = str(SAMPLE),
    as_json: Json = False,
) -> None:
    """Check every split: files, classes, image sizes, root hash, damaged images. Exit code 4 when data are missing."""
    from bench.data import inspection

    number = _parse_decode(decode)
    splits = [inspection.inspect(split, number) for split in _splits(task, where)]
    emit([split.json() for split in splits] if as_json else _check_text(splits))
    if any(split.problems for split in splits):
        raise typer.Exit(ExitCode.INCOMPLETE)


@app.command()
@takes(Where)
def index(
    where: Where,
    task: TaskName,
    anew: Annotated[bool, typer.Option("--anew", help="Read all files again and ignore the cache.")] = False,
    write: Annotated[
        Path | None, typer.Option(help="Also write a list of all files and hashes to this folder, to compare copies.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Hash every file once, ahead of a run, and index the shards; both are cached."""
    import time

    from bench.data import splits
    from bench.files import write_atomic

    rows = []
    for split in _splits(task, where):
        began = time.monotonic()
        source = split.open()
        manifest = splits.manifest_of(source, anew)
        files, size, root = (manifest.files, manifest.bytes, manifest.root) if manifest else (0, 0, "")
        seconds = round(time.monotonic() - began, 1)
        rows.append(dict(zip(INDEXED, (split.name, len(source), files, size, root, seconds), strict=True)))
        if write and root:
            lines = "\n".join([*splits.manifest_lines(source), ""])
            write_atomic(write / f"{split.name.replace('/', '-')}.tsv", lines)
    emit(rows if as_json else _table([_index_row(row) for row in rows]))


@app.command()
@takes(Where)
def leaks(
    where: Where,
    task: TaskName,
    against: Annotated[str, typer.Option(help="Search the data of another task for this task's val images.")] = "",
    bits: Annotated[
        int, typer.Option(min=0, max=12, help="Bits of 64 in which the hashes of near-duplicates may differ.")
    ] = 6,
    as_json: Json = False,
) -> None:
    """Find duplicates, exact or near: images of val that are also trained on or occur twice. Exit code 3 for any.

    Scaled and re-encoded images are found; cropped, mirrored or rotated ones are not.
    """
    scored = _splits(task, where)
    searched = _splits(against, where) if against else scored
    rows = list(_leaks(scored, searched, bits))
    emit(rows if as_json else _leaks_text(rows))
    if rows:
        raise typer.Exit(ExitCode.UNSUPPORTED)


def _splits(task: str, where: Where) -> list[TaskSplit]:
    """The splits of a task, and where they are."""
    from bench.config import registry
    from bench.data import inspection
    from bench.planning.selection import data_roots, parse_data_dirs

    folders = registry.places(where.include)
    roots = data_roots(parse_data_dirs(where.data_dir), folders)
    return inspection.task_splits(registry.read_task(task, folders), roots, where.unlabelled)


def _parse_decode(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdigit():
        raise BenchError(f"--decode {text}: write a number of images, or all")
    return int(text)


def _check_text(splits: Sequence[InspectedSplit]) -> str:
    """A table with a row per split, then what is wrong with them."""
    rows = [_split_row(split) for split in splits if split.images]
    lines = [_table(rows)] if rows else []
    for split in splits:
        lines += [f"{split.name}: {problem}" for problem in split.problems]
        lines += [f"  {name}: {why}" for name, why in list(split.damaged.items())[:MOST_ROWS]]
        if len(split.damaged) > MOST_ROWS:
            lines.append(f"  and {len(split.damaged) - MOST_ROWS:,} more (--json names all)")
    if not any(split.problems for split in splits):
        lines.append("nothing is missing" if any(split.expected for split in splits) else "nothing is wrong")
    return "\n".join(lines)


def _split_row(split: InspectedSplit) -> dict[str, str]:
    sizes = [_range(values) for values in (split.widths, split.heights) if values]
    return {
        "split": split.name,
        "used as": ", ".join(split.roles),
        "images": f"{split.images:,}" + (f" of {split.expected:,}" if split.expected else ""),
        "classes": f"{split.classes:,}",
        "per class": _range(split.per_class) if split.per_class else "-",
        "files": f"{split.files:,}",
        "size": _size(split.bytes),
        "pixels, wide and high": " x ".join(sizes) or "-",
        "decoded": f"{split.decoded:,}",
        "root hash": split.root_hash or GENERATED,
    }


def _range(values: Sequence[int]) -> str:
    """'32..500' of a minimum and a maximum, '32..300..500' with a median, '500' if all are equal."""
    return f"{values[0]:,}" if len(set(values)) == 1 else "..".join(f"{value:,}" for value in values)


def _index_row(row: Mapping[str, Any]) -> dict[str, str]:
    counts = {"images": f"{row['images']:,}", "files": f"{row['files']:,}", "bytes": _size(row["bytes"])}
    return {**row, **counts, "root hash": row["root hash"] or GENERATED, "seconds": f"{row['seconds']:.1f}"}


def _leaks(scored: Sequence[TaskSplit], searched: Sequence[TaskSplit], bits: int) -> Iterable[dict[str, Any]]:
    """A row for every pair: of an image of val and one of another split, or of two images of val."""
    from bench.data import duplicates

    opened: dict[str, tuple[Any, Fingerprints]] = {}

    def open_split(split: TaskSplit) -> tuple[Any, Fingerprints]:
        if split.name not in opened:
            source = split.open(lenient=True)
            opened[split.name] = source, duplicates.fingerprints(source)
        return opened[split.name]

    for val in [split for split in scored if "val" in split.roles]:
        source, prints = open_split(val)
        for other in [split for split in searched if split.name != val.name]:
            other_source, other_prints = open_split(other)
            pairs = duplicates.find_pairs(other_prints, prints, bits)
            yield from (_leak_row(pair, other, other_source, val, source) for pair in pairs)
        if searched is scored:
            pairs = duplicates.find_pairs(prints, None, bits)
            yield from (_leak_row(pair, val, source, val, source) for pair in pairs)


def _leak_row(pair: Pair, left: TaskSplit, left_source: Any, val: TaskSplit, source: Any) -> dict[str, Any]:
    return {
        "what": "same pixels" if pair.exact else "nearly the same",
        "bits apart": pair.bits,
        "picture": f"{left.name}: {left_source.name(pair.left)}",
        "scored picture": f"{val.name}: {source.name(pair.right)}",
    }


def _leaks_text(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "no duplicate images"
    exact = sum(row["what"] == "same pixels" for row in rows)
    summary = f"{len(rows):,} pairs: {exact:,} with the same pixels, {len(rows) - exact:,} nearly the same"
    more = [f"and {len(rows) - MOST_ROWS:,} more (--json has all)"] if len(rows) > MOST_ROWS else []
    table = _table([{name: str(value) for name, value in row.items()} for row in rows[:MOST_ROWS]])
    return "\n".join([table, *more, summary])


def _size(number: int) -> str:
    from bench.cli.formatting import format_number

    return format_number(number, "B")


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    from bench.cli.formatting import format_rows

    return format_rows([dict(row) for row in rows])
