"""Two reports of the same arms, of two versions of a recipe or of this program: what became better, what worse.

A report holds no per-image predictions, so images and seeds are taken as independent between the two: an interval here
is wider than the paired one of a single report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isnan, nan, sqrt
from pathlib import Path
from typing import Any, Literal, NamedTuple

from scipy import stats

from bench.errors import BenchError
from bench.stats import intervals

READS = 2  # format of report.json
NORMAL = float(stats.norm.ppf(0.5 + intervals.LEVEL / 2))
NOT_PROTOCOL = ("task", "arm", "label", "fingerprint")
Verdict = Literal["better", "worse", "not distinguishable", "not comparable", "only before", "only after"]


class Change(NamedTuple):
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
    """A report.json; BenchError when it is none, or of another format."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise BenchError(f"{path} is not JSON: {error}") from None
    made_by = found.get("format") if isinstance(found, dict) else None
    if made_by != READS or "arms" not in found:
        raise BenchError(f"{path} is no report.json of this version (format {made_by}, this one reads {READS})")
    return found


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Every arm of two reports, found in the other by task and id, or else by task and label."""
    old, new = before["arms"], after["arms"]
    pairs = [(row, _same(row, new)) for row in old]
    taken = [id(match) for _, match in pairs if match is not None]
    protocols = [
        {(row["task"], row["arm"]): row for row in report.get("fingerprints", [])} for report in (before, after)
    ]
    found = [_change(row, match, protocols) for row, match in pairs]
    return found + [_alone(row, "only after") for row in new if id(row) not in taken]


def _same(row: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    for key in ("arm", "label"):
        found = [other for other in others if (other["task"], other[key]) == (row["task"], row[key])]
        if len(found) == 1:
            return found[0]
    return None


def _change(
    row: Mapping[str, Any], match: Mapping[str, Any] | None, protocols: Sequence[Mapping[Any, Mapping[str, Any]]]
) -> Change:
    if match is None:
        return _alone(row, "only before")
    scores = _number(row["score"]), _number(match["score"])
    conflicts = _conflicts(
        *(rows.get((one["task"], one["arm"]), {}) for rows, one in zip(protocols, (row, match), strict=True))
    )
    if any(map(isnan, scores)):
        return _of(row, match, nan, (nan, nan), "not comparable", "no score")
    if conflicts:
        return _of(row, match, nan, (nan, nan), "not comparable", "; ".join(conflicts))
    difference = scores[1] - scores[0]
    reach, why = _reach(row, match)
    verdict: Verdict = "not distinguishable"
    if abs(difference) > reach:
        verdict = "better" if difference > 0 else "worse"
    return _of(row, match, difference, (difference - reach, difference + reach), verdict, why)


def _of(
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


def _alone(row: Mapping[str, Any], verdict: Verdict) -> Change:
    score = _number(row["score"])
    scores = (score, nan) if verdict == "only before" else (nan, score)
    return Change(row["task"], row["label"] or row["arm"], *scores, nan, nan, nan, verdict, "", nan)


def _reach(row: Mapping[str, Any], match: Mapping[str, Any]) -> tuple[float, str]:
    """Half the 95 % interval of a difference: of images and of training again, where both were trained more than once.

    Welch's variance, with Satterthwaite's degrees of freedom for what the seeds tell.
    """
    images = sum(((row["high"] - row["low"]) / (2 * NORMAL)) ** 2 for row in (row, match))
    counts = [int(one["seeds"]) for one in (row, match)]
    if min(counts) < 2:
        return NORMAL * sqrt(images), "trained once: other images alone"
    seeds = [one["sd"] ** 2 / count for one, count in zip((row, match), counts, strict=True)]
    spread = sum(part**2 / (count - 1) for part, count in zip(seeds, counts, strict=True))
    freedom = (sum(seeds) + images) ** 2 / spread if spread else float("inf")
    return float(stats.t.ppf(0.5 + intervals.LEVEL / 2, freedom)) * sqrt(sum(seeds) + images), ""


def _conflicts(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Protocol keys that differ."""
    keys = [key for key in before if key not in NOT_PROTOCOL and key in after]
    return [f"{key} {before[key]} vs {after[key]}" for key in keys if before[key] != after[key]]


def _number(value: Any) -> float:
    return nan if value is None else float(value)


def rows(found: Sequence[Change]) -> list[dict[str, str]]:
    """Changes as rows of text."""
    return [
        {
            "task": one.task,
            "arm": one.label,
            "before": _shown(one.before),
            "after": _shown(one.after),
            "difference": _shown(one.difference, sign=True),
            "95 % interval": "" if isnan(one.low) else f"{one.low:+.2f} to {one.high:+.2f}",
            "verdict": one.verdict,
            "device-hours": "" if isnan(one.hours) else f"x {one.hours:.3g}",
            "because": one.why,
        }
        for one in found
    ]


def _shown(value: float, sign: bool = False) -> str:
    return "" if isnan(value) else f"{value:+.2f}" if sign else f"{value:.2f}"
