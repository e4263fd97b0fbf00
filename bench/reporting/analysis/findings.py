"""Findings of a study: everything that a report says, computed from the runs before anything is laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bench.config.stage import Plan
from bench.reporting import published
from bench.reporting.analysis import certainty, claims, convergence, curves, disagreement, reproduction, summary, tables
from bench.reporting.analysis.claims import Evidence
from bench.reporting.analysis.comparability import Guard
from bench.reporting.analysis.comparisons import Comparison, compare_arms
from bench.reporting.analysis.departures import Notes, departures
from bench.reporting.analysis.disagreement import Flips
from bench.reporting.analysis.outcomes import Outcomes
from bench.reporting.analysis.provenance import Provenance, provenance
from bench.reporting.published import Published


@dataclass(frozen=True, slots=True)
class Findings:
    """Numbers, sentences and sources of a study. Names of frames are keys of report.json."""

    outcomes: Outcomes
    comparisons: list[Comparison]  # one for every task, in the order of the plan
    notes: Notes
    table: pd.DataFrame  # tables.main
    extra: pd.DataFrame  # tables.extra
    published: dict[str, list[Published]]  # by task
    answer: dict[str, list[str]]  # by task, Markdown sentences
    limits: list[str]
    provenance: Provenance
    measures: list[Comparison]  # by other scores of the same images: averaged weights, single heads
    stability: pd.DataFrame  # certainty.stability
    variance: pd.DataFrame  # certainty.variance
    detectable: pd.DataFrame  # certainty.detectable
    calibration: pd.DataFrame  # disagreement.calibration
    classes: pd.DataFrame  # disagreement.classes
    agreement: pd.DataFrame  # disagreement.agreement
    flips: list[Flips]
    fingerprints: pd.DataFrame  # comparability.Guard.frame
    verdicts: pd.DataFrame  # reproduction.verdicts
    claims: list[Evidence]
    convergence: pd.DataFrame  # curves.convergence
    levels: pd.DataFrame  # convergence.levels
    area: pd.DataFrame  # convergence.areas
    crossings: pd.DataFrame  # convergence.crossings
    matched: pd.DataFrame  # convergence.matched
    pareto: pd.DataFrame  # convergence.pareto
    reference_curves: pd.DataFrame  # curves.references
    deviations: list[str]  # runs far from their reference curves


def analyse(plan: Plan, results: Path, allow: Sequence[str] = ()) -> Findings:
    """Read the runs of `plan` under `results` and compute the findings.

    allow: protocol keys that may differ between arms that are subtracted. BenchError for a claim about an arm that the
    study does not have, a link to no published row, or an unknown key.
    """
    outcomes = Outcomes(plan, results)
    guard, notes = Guard(outcomes, allow), departures(outcomes)
    comparisons = [
        compare_arms(task, outcomes.of_task(task), outcomes=outcomes, guard=guard) for task in outcomes.tasks
    ]
    rows = published.read(published.locate(results))
    table, evidence = tables.main(outcomes, comparisons, notes), claims.evidence(outcomes, comparisons)
    return Findings(
        outcomes=outcomes,
        comparisons=comparisons,
        notes=notes,
        table=table,
        extra=tables.extra(outcomes),
        published=_published(comparisons, outcomes, rows),
        answer={comparison.task: summary.of_task(comparison, table) for comparison in comparisons},
        limits=summary.limits(outcomes, comparisons, table, guard),
        provenance=provenance(outcomes),
        claims=evidence,
        verdicts=reproduction.verdicts(outcomes, comparisons, guard, rows),
        fingerprints=guard.frame(),
        **_certainty(outcomes, guard, comparisons),
        **_convergence(outcomes),
    )


def _certainty(outcomes: Outcomes, guard: Guard, comparisons: list[Comparison]) -> dict[str, Any]:
    """Uncertainty of the scores, and where the arms disagree."""
    return {
        "measures": certainty.measures(outcomes, guard, comparisons),
        "stability": certainty.stability(comparisons),
        "variance": certainty.variance(comparisons),
        "detectable": certainty.detectable(comparisons),
        "calibration": disagreement.calibration(outcomes),
        "classes": disagreement.classes(comparisons),
        "agreement": disagreement.agreement(comparisons),
        "flips": disagreement.flips(comparisons),
    }


def _convergence(outcomes: Outcomes) -> dict[str, Any]:
    """Convergence in numbers, and beside the reference curves."""
    frame = curves.convergence(outcomes)
    arms = convergence.arm_curves(frame, outcomes)
    return {
        "convergence": frame,
        "levels": convergence.levels(arms, outcomes.plan.study.levels),
        "area": convergence.areas(arms),
        "crossings": convergence.crossings(arms),
        "matched": convergence.matched(arms),
        "pareto": convergence.pareto(arms),
        "reference_curves": curves.references(outcomes),
        "deviations": curves.deviations(outcomes),
    }


def _published(
    comparisons: list[Comparison], outcomes: Outcomes, rows: Sequence[Published]
) -> dict[str, list[Published]]:
    return {
        comparison.task: published.for_task(
            rows, comparison.task, comparison.metric, {a.planned.method for a in outcomes.of_task(comparison.task)}
        )
        for comparison in comparisons
    }
