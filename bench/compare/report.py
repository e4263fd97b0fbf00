"""The files of a report: report.md for people, table.csv for spreadsheets, report.json for programs, figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

import bench
from bench.compare import curves, tables
from bench.compare.differences import Difference
from bench.compare.drawing import settings
from bench.compare.figures import charts
from bench.compare.findings import Findings, find
from bench.compare.page import page
from bench.compare.pictures import all_pictures
from bench.compare.text import plain
from bench.spec import BenchError, Plan
from bench.store import write_atomic

FORMAT = 1  # of report.json; raised when a reader of the older one would misread it
DIGITS = 6  # decimals kept in files: more than any score has, fewer than where machines differ


class Report(NamedTuple):
    """What was written. `rows` are the main tables by task and `answer` the sentences of report.md, without markup."""

    folder: Path
    complete: bool  # every planned stage is done and was used
    missing: tuple[str, ...]
    answer: tuple[str, ...]
    rows: dict[str, list[dict[str, str]]]
    files: tuple[Path, ...]


def make(plan: Plan, results: Path, out: Path) -> Report:
    """Write the report of `plan` from the runs under `results` into `out`. The same runs give the same bytes.

    Raises BenchError when `out` cannot be written or published.csv is wrong; unusable runs are named in the report.
    """
    _prepare(out)
    found = find(plan, results)
    with settings():
        drawn = [*charts(found.outcomes, found.comparisons), *all_pictures(found.outcomes)]
    files = {
        "report.md": page(found, drawn).encode(),
        "table.csv": _csv(found).encode(),
        "report.json": _json(found).encode(),
        **{f"figures/{figure.name}.svg": figure.svg for figure in drawn},
        **{f"figures/{figure.name}.png": figure.png for figure in drawn},
    }
    _write(out, files)
    return _report(found, out, tuple(out / name for name in sorted(files)))


def _report(found: Findings, out: Path, files: tuple[Path, ...]) -> Report:
    by_task = {task: found.table[found.table["task"] == task] for task in found.outcomes.tasks}
    return Report(
        folder=out,
        complete=not found.outcomes.missing,
        missing=found.outcomes.missing,
        answer=tuple(plain(sentence) for sentences in found.answer.values() for sentence in sentences),
        rows={task: _plain_rows(tables.main_rows(frame)) for task, frame in by_task.items()},
        files=files,
    )


def _plain_rows(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{column: plain(cell) for column, cell in row.items()} for row in rows]


def _prepare(out: Path) -> None:
    """Make the folder first: who cannot write there need not wait for the report."""
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"cannot write {out}: {error.strerror}; choose another --output-dir") from None


def _write(out: Path, files: Mapping[str, bytes]) -> None:
    """Write all files, then remove figures of an earlier report that this one does not have."""
    for name, content in files.items():
        write_atomic(out / name, content)
    for old in (*out.glob("figures/*.svg"), *out.glob("figures/*.png")):
        if f"figures/{old.name}" not in files:
            old.unlink()


def _csv(found: Findings) -> str:
    """Measured rows, then published ones; the column `kind` tells them apart."""
    measured = found.table.assign(kind="measured")
    quoted = pd.DataFrame(
        [{**row._asdict(), "score": row.value} for rows in found.published.values() for row in rows]
    ).drop(columns="value", errors="ignore")
    frame = pd.concat([measured, quoted], ignore_index=True) if len(quoted) else measured
    columns = ["kind", *(column for column in frame.columns if column != "kind")]
    return frame[columns].map(_cell).to_csv(index=False, lineterminator="\n")


def _cell(value: Any) -> Any:
    """A value for a spreadsheet: rounded, and a text that looks like a formula made harmless."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


def _json(found: Findings) -> str:
    plan = found.outcomes.plan
    body = {
        "format": FORMAT,
        "bench": bench.__version__,
        "study": {"name": plan.study.name, "title": plan.study.title, "question": plan.study.question},
        "complete": not found.outcomes.missing,
        "missing": found.outcomes.missing,
        "answer": {task: [plain(sentence) for sentence in sentences] for task, sentences in found.answer.items()},
        "limits": [plain(sentence) for sentence in found.limits],
        "arms": [{**row, "by_seed": _by_seed(found, row["arm"])} for row in found.table.to_dict("records")],
        "scores": found.extra.to_dict("records"),
        "differences": [
            {"task": comparison.task, "metric": comparison.metric, **_difference(difference)}
            for comparison in found.comparisons
            for difference in comparison.differences
        ],
        "departures": [plain(text) for text in found.notes.texts],
        "published": [row._asdict() for rows in found.published.values() for row in rows],
        "convergence": curves.convergence(found.outcomes).to_dict("list"),
        "provenance": found.provenance._asdict(),
    }
    return json.dumps(_plain(body), indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def _by_seed(found: Findings, arm: str) -> dict[str, dict[str, float]]:
    return {str(outcome.seed): outcome.metrics for outcome in found.outcomes.arms[arm].seeds}


def _difference(found: Difference) -> dict[str, Any]:
    mcnemar = {str(seed): test._asdict() for seed, test in found.by_seed.items()}
    return {**found._asdict(), "by_seed": mcnemar, "told_apart": found.told_apart}


def _plain(value: Any) -> Any:
    """JSON values only: numbers rounded, what is not a number null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, DIGITS) if math.isfinite(value) else None
    return value
