"""All that a report says, computed from the runs before anything is laid out."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from bench.compare import answer, published, tables
from bench.compare.differences import Comparison, compare_arms
from bench.compare.notes import Notes, departures
from bench.compare.outcomes import Outcomes
from bench.compare.provenance import Provenance, provenance
from bench.compare.published import Published
from bench.spec import Plan


class Findings(NamedTuple):
    """Numbers, sentences and sources of a study."""

    outcomes: Outcomes
    comparisons: list[Comparison]  # one for every task, in the order of the plan
    notes: Notes
    table: pd.DataFrame  # tables.main
    extra: pd.DataFrame  # tables.extra
    published: dict[str, list[Published]]  # by task
    answer: dict[str, list[str]]  # by task, Markdown sentences
    limits: list[str]
    provenance: Provenance


def find(plan: Plan, results: Path) -> Findings:
    """Read the runs of `plan` under `results` and work out what they say."""
    outcomes = Outcomes(plan, results)
    notes = departures(outcomes)
    comparisons = [compare_arms(task, outcomes.of_task(task)) for task in outcomes.tasks]
    table = tables.main(outcomes, comparisons, notes)
    return Findings(
        outcomes=outcomes,
        comparisons=comparisons,
        notes=notes,
        table=table,
        extra=tables.extra(outcomes),
        published=_published(comparisons, outcomes, published.locate(results)),
        answer={comparison.task: answer.of_task(comparison, table) for comparison in comparisons},
        limits=answer.limits(outcomes, comparisons, table),
        provenance=provenance(outcomes),
    )


def _published(comparisons: list[Comparison], outcomes: Outcomes, path: Path | None) -> dict[str, list[Published]]:
    rows = published.read(path) if path else ()
    return {
        comparison.task: published.for_task(
            rows, comparison.task, comparison.metric, {a.planned.method for a in outcomes.of_task(comparison.task)}
        )
        for comparison in comparisons
    }
