"""Two reports of the same arms, from two versions of a recipe or of this program: what became better or worse.

A report.json holds no per-image predictions, so images and seeds count as independent between the two: an interval is
wider than the paired one within a report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt
from pathlib import Path
from typing import Any, Literal

from scipy import stats

from bench.errors import BenchError
from bench.stats import intervals

READS = 2  # the format of report.json that this module understands
NORMAL = float(stats.norm.ppf(0.5 + intervals.LEVEL / 2))  # half of a 95 % interval, in standard errors
NOT_PROTOCOL = ("task", "arm", "label", "fingerprint")  # columns of a fingerprint row that are no protocol keys
Verdict = Literal["better", "worse", "not distinguishable", "not comparable", "only before", "only after"]


@dataclass(frozen=True, slots=True)
class Change:
    """One arm in two reports. Scores in percent, differences (after - before) and their interval in points."""

    task: str
    label: str
    before: float
    after: float
    difference: float
    low: float
    high: float
    verdict: Verdict
    why: str
    hours: float  # device-hours with all upstream stages, after / before


def read(path: Path) -> dict[str, Any]:
    """The content of a report.json; BenchError when the file is none, or of another format."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise BenchError(f"{path} is not JSON: {error}") from None
    written = report.get("format") if isinstance(report, dict) else None
    if written != READS or "arms" not in report:
        raise BenchError(
            f"{path} is not a report.json of this version (format {written}, this one reads {READS}); "
            "write it again with bench compare"
        )
    return report


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Every arm of two reports, matched by task and id, or else by task and label."""
    old, new = before["arms"], after["arms"]
    pairs = [(row, _match(row, new)) for row in old]
    matched = [id(match) for _, match in pairs if match is not None]
    protocols = [
        {(row["task"], row["arm"]): row for row in report.get("fingerprints", [])} for report in (before, after)
    ]
    old_rows = [_change(row, match, protocols) for row, match in pairs]
    return old_rows + [_unmatched(row, "only after") for row in new if id(row) not in matched]


def _match(row: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The same arm in the other report; None where none or several could be it."""
    for key in ("arm", "label"):
        matches = [other for other in others if (other["task"], other[key]) == (row["task"], row[key])]
        if len(matches) == 1:
            return matches[0]
    return None


def _change(
    row: Mapping[str, Any], match: Mapping[str, Any] | None, protocols: Sequence[Mapping[Any, Mapping[str, Any]]]
) -> Change:
    if match is None:
        return _unmatched(row, "only before")
    scores = _number(row["score"]), _number(match["score"])
    conflicts = _conflicts(
        *(keys.get((arm["task"], arm["arm"]), {}) for keys, arm in zip(protocols, (row, match), strict=True))
    )
    if any(map(isnan, scores)):
        return _pair(row, match, nan, (nan, nan), "not comparable", "no score")
    if conflicts:
        return _pair(row, match, nan, (nan, nan), "not comparable", "; ".join(conflicts))
    difference = scores[1] - scores[0]
    margin, why = _margin(row, match)
    verdict: Verdict = "not distinguishable"
    if abs(difference) > margin:
        verdict = "better" if difference > 0 else "worse"
    return _pair(row, match, difference, (difference - margin, difference + margin), verdict, why)


def _pair(
    row: Mapping[str, Any],
    match: Mapping[str, Any],
    difference: float,
    interval: tuple[float, float],
    verdict: Verdict,
    why: str,
) -> Change:
    hours = _number(row.get("device_hours_all")), _number(match.get("device_hours_all"))
    ratio = hours[1] / hours[0] if hours[0] else nan
    scores = _number(row["score"]), _number(match["score"])
    return Change(row["task"], row["label"] or row["arm"], *scores, difference, *interval, verdict, why, ratio)


def _unmatched(row: Mapping[str, Any], verdict: Verdict) -> Change:
    score = _number(row["score"])
    scores = (score, nan) if verdict == "only before" else (nan, score)
    return Change(row["task"], row["label"] or row["arm"], *scores, nan, nan, nan, verdict, "", nan)


def _margin(row: Mapping[str, Any], match: Mapping[str, Any]) -> tuple[float, str]:
    """Half the 95 % interval of a difference, and what it leaves out; over seeds as well where both have several.

    Welch's variance, with Satterthwaite's degrees of freedom for the part that comes from the seeds.
    """
    images = sum(((row["high"] - row["low"]) / (2 * NORMAL)) ** 2 for row in (row, match))
    counts = [int(arm["seeds"]) for arm in (row, match)]
    if min(counts) < 2:
        return NORMAL * sqrt(images), "trained once: other images alone"
    seeds = [arm["sd"] ** 2 / count for arm, count in zip((row, match), counts, strict=True)]
    spread = sum(part**2 / (count - 1) for part, count in zip(seeds, counts, strict=True))
    freedom = (sum(seeds) + images) ** 2 / spread if spread else float("inf")  # all seeds equal: images alone
    return float(stats.t.ppf(0.5 + intervals.LEVEL / 2, freedom)) * sqrt(sum(seeds) + images), ""


def _conflicts(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Protocol keys that both reports know and in which they differ: 'resolution 224 vs 384'."""
    keys = [key for key in before if key not in NOT_PROTOCOL and key in after]
    return [f"{key} {before[key]} vs {after[key]}" for key in keys if before[key] != after[key]]


def _number(value: Any) -> float:
    return nan if value is None else float(value)


def rows(changes: Sequence[Change]) -> list[dict[str, str]]:
    """Changes as rows of text; a cell without a number is empty."""
    return [
        {
            "task": change.task,
            "arm": change.label,
            "before": _score(change.before),
            "after": _score(change.after),
            "difference": _score(change.difference, sign=True),
            "95 % interval": "" if isnan(change.low) else f"{change.low:+.2f} to {change.high:+.2f}",
            "verdict": change.verdict,
            "device-hours": "" if isnan(change.hours) else f"x {change.hours:.3g}",
            "because": change.why,
        }
        for change in changes
    ]


def _score(value: float, sign: bool = False) -> str:
    return "" if isnan(value) else f"{value:+.2f}" if sign else f"{value:.2f}"
