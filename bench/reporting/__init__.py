"""From runs to a report: which arm is best, by how much, how sure that is, what it cost. Never imports torch."""

from __future__ import annotations

from bench.reporting.report import Report, compare

__all__ = ["Report", "compare"]
