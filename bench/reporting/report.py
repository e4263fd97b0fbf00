"""The files of a report, all from one document: for people, for papers, for spreadsheets and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.config.stage import Plan
from bench.errors import BenchError
from bench.files import write_atomic
from bench.reporting.analysis import tables
from bench.reporting.analysis.claims import Evidence
from bench.reporting.analysis.findings import Findings, find
from bench.reporting.figures.charts import all_charts
from bench.reporting.figures.image_grids import all_pictures
from bench.reporting.figures.matplotlib_charts import draw
from bench.reporting.figures.style import Drawn, settings
from bench.reporting.formats import json_csv
from bench.reporting.formats.html import webpage
from bench.reporting.formats.latex import latex
from bench.reporting.formats.markdown import markdown
from bench.reporting.markup import plain
from bench.reporting.pages.document import Document
from bench.reporting.pages.page import document


class Report(NamedTuple):
    """What was written. `rows` are the main tables by task and `answer` the sentences of report.md, without markup."""

    folder: Path
    complete: bool  # every planned stage is done and was used
    missing: tuple[str, ...]
    answer: tuple[str, ...]
    rows: dict[str, list[dict[str, str]]]
    files: tuple[Path, ...]
    limits: tuple[str, ...] = ()
    claims: tuple[Evidence, ...] = ()


def make(plan: Plan, results: Path, out: Path, allow: Sequence[str] = ()) -> Report:
    """Write the report of `plan` from the runs under `results` into `out`. The same runs give the same bytes.

    allow: protocol keys in which rows may differ. Raises BenchError when `out` cannot be written or published.csv is
    wrong; unusable runs are named in the report.
    """
    _prepare(out)
    found = find(plan, results, allow)
    with settings():
        charts = all_charts(found)
        drawn = [*map(draw, charts), *all_pictures(found.outcomes, found.comparisons)]
    files = {**_texts(found, document(found, drawn)), **_figures(drawn)}
    _write(out, files)
    return _report(found, out, tuple(out / name for name in sorted(files)))


def _texts(found: Findings, page: Document) -> dict[str, bytes]:
    """Everything but the figures, by file name."""
    texts = {
        "report.md": markdown(page),
        "report.html": webpage(page),
        "report.json": json_csv.report_json(found, page),
        "table.csv": json_csv.table_csv(found),
        "table.tex": latex(page),
        "model-index.json": json_csv.model_index(found),
    }
    return {name: text.encode() for name, text in texts.items()}


def _figures(drawn: Sequence[Drawn]) -> dict[str, bytes]:
    vector = {f"figures/{figure.name}.svg": figure.svg for figure in drawn}
    return vector | {f"figures/{figure.name}.png": figure.png for figure in drawn}


def _report(found: Findings, out: Path, files: tuple[Path, ...]) -> Report:
    by_task = {task: found.table[found.table["task"] == task] for task in found.outcomes.tasks}
    return Report(
        folder=out,
        complete=not found.outcomes.missing,
        missing=found.outcomes.missing,
        answer=tuple(plain(sentence) for sentences in found.answer.values() for sentence in sentences),
        rows={task: _plain_rows(tables.main_rows(frame)) for task, frame in by_task.items()},
        files=files,
        limits=tuple(plain(sentence) for sentence in found.limits),
        claims=tuple(found.claims),
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
