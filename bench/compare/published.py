"""Numbers from papers, each with its conditions and its source: reading and checking `published.csv`."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from bench.compare.text import NO_VALUE, escaped, metric_name
from bench.spec import BenchError, nearest

Kind = Literal["quoted", "author-evaluated", "third-party"]
SOURCE = re.compile(r"(arXiv \d{4}\.\d{4,5}|github\.com/\S+|huggingface\.co/\S+), \S")
CONTEXT = ("mae", "dino", "mocov3")  # shown beside the methods of a study
METHODS = ("vit", "deit", "beit", "data2vec", *CONTEXT)


class Published(NamedTuple):
    """One number that somebody published. Epochs are of pretraining; empty text: the source does not say."""

    method: str
    variant: str
    size: str
    resolution: int
    pretraining_data: str
    pretraining_epochs: str
    task: str
    protocol: str
    metric: str
    value: float
    source: str  # 'arXiv 2106.08254, Table 1' or 'github.com/owner/repository, file'
    kind: Kind
    verified: bool  # read a second time at the source


def default_path() -> Path:
    """Where the table lies in the source tree."""
    return Path(__file__).resolve().parents[2] / "results" / "published.csv"


def locate(results: Path) -> Path | None:
    """The table beside the results, else the one of the source tree; None where neither is there."""
    return next((path for path in (results / "published.csv", default_path()) if path.exists()), None)


def read(path: Path) -> tuple[Published, ...]:
    """All rows of a table; BenchError names the line of the first one that is wrong, or has no source."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.DictReader(file)
            if tuple(lines.fieldnames or ()) != Published._fields:
                raise BenchError(f"{path}: the columns must be {', '.join(Published._fields)}")
            return tuple(_row(line, f"{path}, line {lines.line_num}") for line in lines)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BenchError(f"{path}: {error}") from None


def _row(line: Mapping[str | None, str | None], where: str) -> Published:
    if None in line or None in line.values():
        raise BenchError(f"{where}: it has not {len(Published._fields)} columns")
    text = {str(key): str(value).strip() for key, value in line.items()}
    if not SOURCE.match(text["source"]):
        raise BenchError(
            f"{where}: source {text['source']!r} names no paper or file; write 'arXiv 2106.08254, Table 1' or "
            "'github.com/owner/repository, file'. A number without a source is not shown"
        )
    _one_of(text["kind"], get_args(Kind), f"{where}: kind")
    _one_of(text["method"], METHODS, f"{where}: method")
    _one_of(text["verified"], ("yes", "no"), f"{where}: verified")
    numbers = {
        "value": _number(text["value"], f"{where}: value"),
        "resolution": int(_number(text["resolution"], where)),
    }
    if not 0 < numbers["value"] <= 100:
        raise BenchError(f"{where}: value {text['value']} is not a percentage")
    return Published(**{**text, **numbers, "verified": text["verified"] == "yes"})  # type: ignore[arg-type]


def _one_of(word: str, known: Sequence[str], where: str) -> None:
    if word not in known:
        raise BenchError(f"{where} {word!r} is none of {', '.join(known)}.{nearest(word, known)}")


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BenchError(f"{where}: {text!r} is not a number") from None


def for_task(rows: Sequence[Published], task: str, metric: str, methods: Collection[str]) -> list[Published]:
    """Rows about a task by its headline metric: the study's methods and the context methods, in a fixed order."""
    order = {method: rank for rank, method in enumerate(METHODS)}
    here = [row for row in rows if (row.task, row.metric) == (task, metric) and row.method in {*methods, *CONTEXT}]
    return sorted(here, key=lambda row: (order[row.method], row.size, row.resolution, row.protocol, row.variant))


def table_rows(rows: Sequence[Published]) -> list[dict[str, str]]:
    """Published numbers for people, with conditions and source."""
    return [
        {
            "method": f"*{escaped(row.method)}* \u2020" + (f" ({escaped(row.variant)})" if row.variant else ""),
            "size": escaped(row.size),
            metric_name(row.metric): f"*{row.value:g}*",
            "resolution": str(row.resolution),
            "pretraining": escaped(row.pretraining_data) or NO_VALUE,
            "pretraining epochs": escaped(row.pretraining_epochs) or NO_VALUE,
            "protocol": escaped(row.protocol),
            "source": escaped(row.source, 120),
            "kind": row.kind,
            "read twice": "yes" if row.verified else "no",
        }
        for row in rows
    ]
