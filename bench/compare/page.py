"""A report from what was found: which sections it has, in which order, and how it begins."""

from __future__ import annotations

from collections.abc import Sequence

from bench.compare import page_scores, page_sources, page_training
from bench.compare.document import Block, Bullets, Document, Paragraph, Section, section
from bench.compare.drawing import Drawn
from bench.compare.findings import Findings
from bench.compare.text import escaped

LONGEST_TEXT = 400


def document(found: Findings, drawn: Sequence[Drawn]) -> Document:
    """The whole report. Sections without content are left out."""
    study, figures = found.outcomes.plan.study, {figure.name: figure for figure in drawn}
    sections = (
        _answer(found),
        page_scores.scores(found, figures),
        page_scores.differences(found),
        page_training.convergence(found, figures),
        page_training.cost(found, figures),
        page_training.differing(found),
        page_training.pictures(found, figures),
        page_scores.errors(found),
        page_sources.provenance(found),
        page_sources.published_numbers(found),
        page_sources.claims(found),
        page_sources.reading(),
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
