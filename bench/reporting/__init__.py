"""From runs to a report: which arm is best, by how much, how sure that is, what it cost. Never imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.config.stage import Plan
from bench.reporting.report import Report, make


def compare(plan: Plan, results: Path, out: Path, allow: Sequence[str] = ()) -> Report:
    """Write report.html, .md, .json, table.csv, .tex, model-index.json and figures/ of a study into `out`.

    results: where its runs lie. allow: protocol keys in which rows may differ and still be subtracted.

    A stage that is missing or failed is named in the report, which is then not `complete`. The same runs give the
    same bytes. Raises BenchError when `out` cannot be written.
    """
    return make(plan, Path(results), Path(out), allow)
