"""bench data: look at the data of a task before anything is trained on them."""

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
    from bench.data.duplicates import Looks, Pair
    from bench.data.inspection import InspectedSplit, Place

SHOWN = 40  # pairs or files that a table shows; --json has all
GENERATED = "generated"  # instead of a root hash, for data that lie in no files
INDEXED = ("split", "images", "files", "bytes", "root hash", "seconds")
SAMPLE = 256  # pictures of a split that are decoded unless more are asked for

app = typer.Typer(
    help="Look at a task's data: what there is, what is missing, what is there twice.", no_args_is_help=True
)

TaskName = Annotated[str, typer.Argument(help="A task, like imagenet1k.")]


@dataclass
class Where:
    """Where data lie."""

    data_dir: DataDirs = field(default_factory=list)
    unlabelled: Annotated[str, typer.Option(help="A folder of pictures for learning without labels.")] = ""
    include: Include = field(default_factory=list)


@app.command()
@takes(Where)
def check(
    where: Where,
    task: TaskName,
    decode: Annotated[str, typer.Option(help="How many pictures of each split to decode, or all.")] = str(SAMPLE),
    as_json: Json = False,
) -> None:
    """Files, classes, sizes, root hash and damaged pictures of every split. Exit code 4 when something is missing."""
    from bench.data import inspection

    number = _decode(decode)
    found = [inspection.inspect(place, number) for place in _places(task, where)]
    emit([split.json() for split in found] if as_json else _checked(found))
    if any(split.problems for split in found):
        raise typer.Exit(ExitCode.INCOMPLETE)


@app.command()
@takes(Where)
def index(
    where: Where,
    task: TaskName,
    anew: Annotated[bool, typer.Option("--anew", help="Read all files again, whatever is known of them.")] = False,
    write: Annotated[Path | None, typer.Option(help="A folder for lists of all files, to be compared.")] = None,
    as_json: Json = False,
) -> None:
    """Read every file once, ahead of time: the hashes and the places of pictures in shards are then known."""
    import time

    from bench.data import splits
    from bench.files import write_atomic

    rows = []
    for place in _places(task, where):
        began = time.monotonic()
        source = place.open()
        kept = splits.manifest_of(source, anew)
        files, size, root = (kept.files, kept.bytes, kept.root) if kept else (0, 0, "")
        seconds = round(time.monotonic() - began, 1)
        rows.append(dict(zip(INDEXED, (place.name, len(source), files, size, root, seconds), strict=True)))
        if write and root:
            lines = "\n".join([*splits.manifest_lines(source), ""])
            write_atomic(write / f"{place.name.replace('/', '-')}.tsv", lines)
    emit(rows if as_json else _table([_indexed(row) for row in rows]))


@app.command()
@takes(Where)
def leaks(
    where: Where,
    task: TaskName,
    against: Annotated[str, typer.Option(help="Another task: are this one's test pictures among its data?")] = "",
    bits: Annotated[int, typer.Option(min=0, max=12, help="Bits of 64 in which like pictures may differ.")] = 6,
    as_json: Json = False,
) -> None:
    """Pictures of val that are also learnt from, or there twice: the same, or nearly. Exit code 3 when there are any.

    Scaled and re-encoded pictures are found; cropped, mirrored or turned ones are not.
    """
    ours = _places(task, where)
    theirs = _places(against, where) if against else ours
    rows = list(_leaks(ours, theirs, bits))
    emit(rows if as_json else _leaked(rows))
    if rows:
        raise typer.Exit(ExitCode.UNSUPPORTED)


def _places(task: str, where: Where) -> list[Place]:
    """The splits of a task, and where they lie."""
    from bench.cli.requests import roots
    from bench.config import registry
    from bench.data import inspection

    found = registry.places(where.include)
    lie = roots(where.data_dir, registry.task_files(found))
    return inspection.places(registry.read_task(task, found), lie, where.unlabelled)


def _decode(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdigit():
        raise BenchError(f"--decode {text}: write a number of pictures, or all")
    return int(text)


def _checked(found: Iterable[InspectedSplit]) -> str:
    """What was found, a line per split, then what is wrong."""
    splits = list(found)
    there = [_split_row(split) for split in splits if split.images]
    lines = [_table(there)] if there else []
    for split in splits:
        lines += [f"{split.name}: {problem}" for problem in split.problems]
        lines += [f"  {name}: {why}" for name, why in list(split.damaged.items())[:SHOWN]]
        if len(split.damaged) > SHOWN:
            lines.append(f"  and {len(split.damaged) - SHOWN:,} more (--json names all)")
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
    """'500', or '32..500' and with a median '32..300..500'."""
    return f"{values[0]:,}" if len(set(values)) == 1 else "..".join(f"{value:,}" for value in values)


def _indexed(row: Mapping[str, Any]) -> dict[str, str]:
    shown = {"images": f"{row['images']:,}", "files": f"{row['files']:,}", "bytes": _size(row["bytes"])}
    return {**row, **shown, "root hash": row["root hash"] or GENERATED, "seconds": f"{row['seconds']:.1f}"}


def _leaks(ours: Sequence[Place], theirs: Sequence[Place], bits: int) -> Iterable[dict[str, Any]]:
    """A row for every pair: pictures scored on against those learnt from, and within those scored on."""
    from bench.data import duplicates

    seen: dict[str, tuple[Any, Looks]] = {}

    def look(place: Place) -> tuple[Any, Looks]:
        if place.name not in seen:
            source = place.open(lenient=True)
            seen[place.name] = source, duplicates.looks(source)
        return seen[place.name]

    for scored in [place for place in ours if "val" in place.roles]:
        source, kept = look(scored)
        for other in theirs:
            if other.name == scored.name:
                continue
            partner, others = look(other)
            yield from (_leak(pair, other, partner, scored, source) for pair in duplicates.pairs(others, kept, bits))
        if ours is theirs:
            found = duplicates.pairs(kept, None, bits)
            yield from (_leak(pair, scored, source, scored, source) for pair in found)


def _leak(pair: Pair, left: Place, source: Any, right: Place, scored: Any) -> dict[str, Any]:
    return {
        "what": "same pixels" if pair.exact else "nearly the same",
        "bits apart": pair.bits,
        "picture": f"{left.name}: {source.name(pair.left)}",
        "scored picture": f"{right.name}: {scored.name(pair.right)}",
    }


def _leaked(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "no picture is there twice"
    exact = sum(row["what"] == "same pixels" for row in rows)
    told = f"{len(rows):,} pairs: {exact:,} with the same pixels, {len(rows) - exact:,} nearly the same"
    more = [f"and {len(rows) - SHOWN:,} more (--json has all)"] if len(rows) > SHOWN else []
    shown = [{name: str(value) for name, value in row.items()} for row in rows[:SHOWN]]
    return "\n".join([_table(shown), *more, told])


def _size(number: int) -> str:
    from bench.cli.formatting import short

    return short(number, "B")


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    from bench.cli.formatting import aligned

    return aligned([dict(row) for row in rows])
