"""A report from what was found: which sections it has, in which order, and how it begins."""

from __future__ import annotations

from collections.abc import Sequence

from bench.reporting.analysis.findings import Findings
from bench.reporting.figures.style import Drawn
from bench.reporting.formatting import escaped
from bench.reporting.pages import scores, sources, training
from bench.reporting.pages.document import Block, Bullets, Document, Paragraph, Section, section

LONGEST_TEXT = 400


def document(found: Findings, drawn: Sequence[Drawn]) -> Document:
    """The whole report. Sections without content are left out."""
    study, figures = found.outcomes.plan.study, {figure.name: figure for figure in drawn}
    sections = (
        _answer(found),
        scores.scores(found, figures),
        scores.differences(found),
        training.convergence(found, figures),
        training.cost(found, figures),
        training.differing(found),
        training.pictures(found, figures),
        scores.errors(found),
        sources.provenance(found),
        sources.published_numbers(found),
        sources.claims(found),
        sources.reading(),
    )
    title, question = (escaped(text, LONGEST_TEXT) for text in (study.title or study.name, study.question))
    return Document(title, question, tuple(one for one in sections if not one.empty))


def _answer(found: Findings) -> Section:
    """What is missing, the sentences about every task, then what they do not say."""
    blocks: list[Block] = _missing(found.outcomes.missing, len(found.outcomes.stages))
    for sentences in found.answer.values():
        blocks += [Paragraph(sentences[0]), *([Bullets(tuple(sentences[1:]))] if sentences[1:] else [])]
    told: list[Block] = (
        [Paragraph("**What cannot be concluded.**"), Bullets(tuple(found.limits))] if found.limits else []
    )
    return section("Answer", *blocks, *told)


def _missing(missing: Sequence[str], stages: int) -> list[Block]:
    if not missing:
        return []
    lines = tuple(escaped(line, LONGEST_TEXT) for line in missing)
    told = f"**Incomplete.** Of {stages} planned stages and their files, {len(missing)} could not be used:"
    return [Paragraph(told, loud=True), Bullets(lines)]
