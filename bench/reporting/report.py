"""The files of a report, all from one document: for people, for papers, for spreadsheets and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bench.config.stage import Plan
from bench.errors import BenchError
from bench.files import write_atomic
from bench.reporting.analysis import tables
from bench.reporting.analysis.claims import Evidence
from bench.reporting.analysis.findings import Findings, analyse
from bench.reporting.figures.charts import all_charts
from bench.reporting.figures.image_grids import all_pictures
from bench.reporting.figures.matplotlib_charts import draw
from bench.reporting.figures.style import DrawnFigure, settings
from bench.reporting.formats import json_csv
from bench.reporting.formats.html import webpage
from bench.reporting.formats.latex import latex
from bench.reporting.formats.markdown import markdown
from bench.reporting.markup import plain
from bench.reporting.pages.document import Document
from bench.reporting.pages.page import document


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """The report of a study: its main results, and where its files are. Scores are in percent, differences in points.

    scores: a row per task and arm: task, arm (its id), label, method, variant, size, budget, metric; score (mean over
        seeds), sd, seeds, seeds_planned; low, high (95 %, other images), low_retrained, high_retrained (95 %, training
        again as well), images_scored, pretrainings, first (probability of ranking first), best, like_best, apart (why
        it is not ranked); costs by images_*, flops_* and device_hours_* (own: last stage, all: with upstream stages),
        parameters, pretraining_epochs; design, starts_from, fidelity, reportable, notes.
    differences: a row per task and pair of arms, `first` minus `second`: task, metric, first, second (ids),
        first_label, second_label; difference, low, high (95 %: other images, and training again where both were),
        low_images, high_images (95 %, other images alone), p, p_adjusted (Holm), by_retraining (differences up to here
        are within the noise of retraining), freedom, scope, verdict, told_apart, conflicts (protocol keys, where the
        two are not comparable).
    convergence: a row per task, arm and score level, what it took to reach it: task, arm, label, level, seeds, reached
        (number of seeds that did); epochs (of the last stage), images_own, images_all, flops_all, device_hours_all,
        each with its 95 % interval in *_low and *_high.
    """

    folder: Path
    complete: bool  # every planned stage is done and its files could be used
    missing: tuple[str, ...]  # a line for every stage or file that could not be used
    answer: tuple[str, ...]  # the sentences of the section "Answer", without markup
    limits: tuple[str, ...]  # what cannot be concluded
    rows: dict[str, list[dict[str, str]]]  # the main table of each task as text
    claims: tuple[Evidence, ...]
    scores: pd.DataFrame
    differences: pd.DataFrame
    convergence: pd.DataFrame
    files: tuple[Path, ...]


def compare(plan: Plan, results: Path, out: Path, allow: Sequence[str] = ()) -> Report:
    """Write report.html, .md, .json, table.csv, .tex, model-index.json and figures/ of a study into `out`.

    results: the output folder that holds its runs. allow: protocol keys in which two arms may differ and still be
    subtracted. The same runs give the same bytes. A stage that is missing, failed or damaged is named in the report,
    which is then not `complete`. Raises BenchError when `out` cannot be written or published.csv or a claim is wrong.
    """
    results, out = Path(results), Path(out)
    _make_folder(out)
    findings = analyse(plan, results, allow)
    with settings():
        figures = [*map(draw, all_charts(findings)), *all_pictures(findings.outcomes, findings.comparisons)]
    page = document(findings, figures)  # after the pictures: a damaged pictures.npz becomes one of `missing`
    files = {**_texts(findings, page), **_images(figures)}
    _write(out, files)
    return _report(findings, out, tuple(out / name for name in sorted(files)))


def _texts(findings: Findings, page: Document) -> dict[str, bytes]:
    """Everything but the figures, by file name."""
    texts = {
        "report.md": markdown(page),
        "report.html": webpage(page),
        "report.json": json_csv.report_json(findings, page),
        "table.csv": json_csv.table_csv(findings),
        "table.tex": latex(page),
        "model-index.json": json_csv.model_index(findings),
    }
    return {name: text.encode() for name, text in texts.items()}


def _images(figures: Sequence[DrawnFigure]) -> dict[str, bytes]:
    """Every figure as SVG and as PNG, by file name."""
    svgs = {f"figures/{figure.name}.svg": figure.svg for figure in figures}
    return svgs | {f"figures/{figure.name}.png": figure.png for figure in figures}


def _report(findings: Findings, out: Path, files: tuple[Path, ...]) -> Report:
    by_task = {task: findings.table[findings.table["task"] == task] for task in findings.outcomes.tasks}
    return Report(
        folder=out,
        complete=not findings.outcomes.missing,
        missing=findings.outcomes.missing,
        answer=tuple(plain(sentence) for sentences in findings.answer.values() for sentence in sentences),
        rows={task: _plain_rows(tables.main_rows(frame)) for task, frame in by_task.items()},
        limits=tuple(plain(sentence) for sentence in findings.limits),
        claims=tuple(findings.claims),
        scores=findings.table,
        differences=tables.differences(findings.comparisons),
        convergence=findings.levels,
        files=files,
    )


def _plain_rows(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{column: plain(cell) for column, cell in row.items()} for row in rows]


def _make_folder(out: Path) -> None:
    """Make the folder before anything is computed: nobody should wait for a report that cannot be written."""
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"cannot write {out}: {error.strerror}; choose another --output-dir") from None


def _write(out: Path, files: Mapping[str, bytes]) -> None:
    """Write all files, then remove the figures of an earlier report that are not among them."""
    for name, content in files.items():
        write_atomic(out / name, content)
    for old in (*out.glob("figures/*.svg"), *out.glob("figures/*.png")):
        if f"figures/{old.name}" not in files:
            old.unlink()
