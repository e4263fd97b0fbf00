"""The first section: which arm is best on each task, in sentences, and what these runs cannot answer."""

from __future__ import annotations

from collections.abc import Sequence

from bench.reporting.analysis.findings import Findings
from bench.reporting.formatting import escaped
from bench.reporting.pages.columns import LONGEST_TEXT
from bench.reporting.pages.document import Block, Bullets, Paragraph, Section, section


def answer(findings: Findings) -> Section:
    """What is missing, the sentences about every task, then what cannot be concluded."""
    blocks = _missing(findings.outcomes.missing, len(findings.outcomes.stages))
    for first, *others in findings.answer.values():
        blocks += [Paragraph(first), *([Bullets(tuple(others))] if others else [])]
    if findings.limits:
        blocks += [Paragraph("**What cannot be concluded.**"), Bullets(tuple(findings.limits))]
    return section("Answer", *blocks)


def _missing(missing: Sequence[str], stages: int) -> list[Block]:
    if not missing:
        return []
    message = f"**Incomplete.** Of {stages} planned stages and their files, {len(missing)} could not be used:"
    return [Paragraph(message, loud=True), Bullets(tuple(escaped(line, LONGEST_TEXT) for line in missing))]
