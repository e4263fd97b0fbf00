"""The table of contents of a report: its sections, in the order in which they are read.

A new section is a function in a module of this folder that returns a `Section`, and a line in `document`. Its numbers
come from a module of `reporting/analysis`, as a field of `Findings`; its figures, by name, from `reporting/figures`.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.reporting.analysis.findings import Findings
from bench.reporting.figures.style import DrawnFigure
from bench.reporting.formatting import escaped
from bench.reporting.pages import answer, scores, sources, training
from bench.reporting.pages.columns import LONGEST_TEXT
from bench.reporting.pages.document import Document


def document(findings: Findings, drawn: Sequence[DrawnFigure]) -> Document:
    """The whole report. Sections without content are left out."""
    figures = {figure.name: figure for figure in drawn}
    sections = (
        answer.answer(findings),
        scores.scores(findings, figures),
        scores.differences(findings),
        training.convergence(findings, figures),
        training.cost(findings, figures),
        training.configurations(findings),
        training.pictures(findings, figures),
        scores.errors(findings),
        sources.provenance(findings),
        sources.published_numbers(findings),
        sources.claims(findings),
        sources.reading_guide(),
    )
    study = findings.outcomes.plan.study
    title, question = (escaped(text, LONGEST_TEXT) for text in (study.title or study.name, study.question))
    return Document(title, question, tuple(section for section in sections if not section.empty))
