"""Published results, each with its conditions and its source: reading and checking `published.csv`."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from bench.config.stage import Plan
from bench.errors import BenchError, nearest, unknown
from bench.reporting.formatting import NO_VALUE, escaped, metric_name
from bench.resources import shipped

Kind = Literal["quoted", "author-evaluated", "third-party"]
ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
SOURCE = re.compile(r"(arXiv \d{4}\.\d{4,5}|github\.com/\S+|huggingface\.co/\S+), \S")
CONTEXT = ("mae", "dino", "mocov3")  # shown beside the methods of a study
METHODS = ("vit", "deit", "beit", "data2vec", *CONTEXT)


@dataclass(frozen=True, slots=True)
class Published:
    """One published number. Empty text: the source does not say."""

    id: str  # letters, digits and dashes; what a study's arm names as the row it reproduces
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


COLUMNS = tuple(field.name for field in fields(Published))


def default_path() -> Path:
    """The table that is shipped with bench."""
    return shipped("results/published.csv")


def locate(results: Path) -> Path:
    """The table in the output folder where there is one, else the one that is shipped with bench."""
    own = results / "published.csv"
    return own if own.exists() else default_path()


def read(path: Path) -> tuple[Published, ...]:
    """All rows of a table; BenchError names the line of the first one that is wrong or has no source."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.DictReader(file)
            if tuple(lines.fieldnames or ()) != COLUMNS:
                raise BenchError(f"{path}: the columns must be {', '.join(COLUMNS)}")
            rows: dict[str, Published] = {}
            for line in lines:
                row = _row(line, f"{path}, line {lines.line_num}")
                if row.id in rows:
                    raise BenchError(
                        f"{path}, line {lines.line_num}: the id {row.id!r} stands above already; use another"
                    )
                rows[row.id] = row
            return tuple(rows.values())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BenchError(f"{path}: {error}") from None


def _row(line: Mapping[str | None, str | None], where: str) -> Published:
    if None in line or None in line.values():  # csv's sign for more or fewer cells than columns
        raise BenchError(f"{where}: the row must have {len(COLUMNS)} columns, one for each name in the first line")
    text = {str(key): str(value).strip() for key, value in line.items()}
    if not SOURCE.match(text["source"]):
        raise BenchError(
            f"{where}: source {text['source']!r} names no paper or file; write 'arXiv 2106.08254, Table 1' or "
            "'github.com/owner/repository, file'. A number without a source is not shown"
        )
    if not ID.fullmatch(text["id"]):
        raise BenchError(f"{where}: id {text['id']!r} is not made of small letters, digits and single dashes")
    _check_word(text["kind"], get_args(Kind), f"{where}: kind")
    _check_word(text["method"], METHODS, f"{where}: method")
    _check_word(text["verified"], ("yes", "no"), f"{where}: verified")
    numbers = {
        "value": _number(text["value"], f"{where}: value"),
        "resolution": int(_number(text["resolution"], where)),
    }
    if not 0 < numbers["value"] <= 100:
        raise BenchError(f"{where}: value {text['value']} is not a percentage above 0 and up to 100")
    return Published(**{**text, **numbers, "verified": text["verified"] == "yes"})  # type: ignore[arg-type]


def _check_word(word: str, allowed: Sequence[str], where: str) -> None:
    if word not in allowed:
        raise BenchError(f"{where} {word!r} is not one of {', '.join(allowed)}.{nearest(word, allowed)}")


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BenchError(f"{where}: {text!r} is not a number") from None


def by_id(rows: Sequence[Published], name: str, where: str) -> Published:
    """The row with this id, which an arm reproduces; BenchError offers the nearest id."""
    for row in rows:
        if row.id == name:
            return row
    raise BenchError(f"{where}: published.csv has no row {name!r}.{nearest(name, [row.id for row in rows])}")


def for_task(rows: Sequence[Published], task: str, metric: str, methods: Collection[str]) -> list[Published]:
    """Rows about a task and its headline metric, of the study's methods and the context methods, in a fixed order."""
    order = {method: rank for rank, method in enumerate(METHODS)}
    of_task = [row for row in rows if (row.task, row.metric) == (task, metric) and row.method in {*methods, *CONTEXT}]
    return sorted(of_task, key=lambda row: (order[row.method], row.size, row.resolution, row.protocol, row.variant))


def table_rows(rows: Sequence[Published]) -> list[dict[str, str]]:
    """Published numbers as rows of text, with conditions and source."""
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


def check(plan: Plan, path: Path) -> None:
    """Raise BenchError when an arm names a published row that the table does not have."""
    ids = {row.id for row in read(path)}
    for name in sorted({arm.published for arm in plan.arms if arm.published} - ids):
        raise unknown(f"published row for study {plan.study.name}", name, ids)
