"""What a study claims, and whether its data support it.

    beit > deit on imagenet1k/top1 by 0.5       better by at least so many points (0 where nothing is said)
    data2vec ~ beit within 0.2                  alike within so many points
An arm is named by its label, its id or its method[:variant]. Without a task, a claim is about every task of the study.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import nan
from typing import NamedTuple

from bench.config.stage import Plan, PlannedArm
from bench.errors import BenchError, nearest
from bench.reporting.analysis.comparisons import Comparison, Difference
from bench.reporting.analysis.outcomes import Outcomes, label_of
from bench.reporting.formatting import METRICS, MINUS, points
from bench.stats import intervals, variance_components
from bench.stats.variance_components import Scope

FORM = re.compile(
    r"\s*(?P<first>.+?)\s*(?P<sign>[<>~])\s*(?P<second>.+?)"
    r"(?:\s+on\s+(?P<task>[^\s/]+)(?:/(?P<metric>\S+))?)?(?:\s+(?P<bound>by|within)\s+(?P<points>[0-9.]+))?\s*"
)
HELP = "write 'beit > deit on imagenet1k/top1 by 0.5' or 'data2vec ~ beit within 0.2'"
OVER: dict[Scope, str] = {
    "methods": "other images and training again",
    "fine-tunings": "other images and fine-tuning again of one pretraining",
    "weights": "other images alone (trained once)",
}


class Claim(NamedTuple):
    """`first` is above `second` by at least `points`, or alike within them; on one task, or on all ('')."""

    text: str
    first: str
    second: str
    alike: bool
    points: float
    task: str
    metric: str


class Evidence(NamedTuple):
    """A claim on one task, and what the data say: the difference of the two arms with its 95 % interval, in points."""

    text: str
    supported: bool
    task: str
    sentence: str
    difference: float
    low: float
    high: float
    p: float  # of the difference against the points claimed; the larger of both sides for 'alike'
    why: str


def parse(text: str) -> Claim:
    """A claim as a study writes it; BenchError names the text."""
    found = FORM.fullmatch(text)
    if not found:
        raise BenchError(f"the claim {text!r} cannot be read; {HELP}")
    first, second, sign, bound = (found[name] for name in ("first", "second", "sign", "bound"))
    if (sign == "~") != (bound == "within") and not (sign != "~" and bound is None):
        wanted = "'within' and how many points" if sign == "~" else "'by' and how many points, or nothing"
        raise BenchError(f"the claim {text!r}: behind {sign!r} stands {wanted}; {HELP}")
    try:
        many = float(found["points"] or 0)
    except ValueError:
        raise BenchError(f"the claim {text!r}: {found['points']!r} is no number of points") from None
    if sign == "<":
        first, second = second, first
    return Claim(text, first, second, sign == "~", many, found["task"] or "", found["metric"] or "")


def check(plan: Plan) -> list[Claim]:
    """The claims of a study, every name in them known; BenchError names the claim and the nearest arm."""
    claims = [parse(text) for text in plan.study.claims]
    for claim in claims:
        _tasks(claim, plan)
    return claims


def _tasks(claim: Claim, plan: Plan) -> list[tuple[str, PlannedArm, PlannedArm]]:
    """The tasks a claim is about, with its two arms."""
    tasks = list(dict.fromkeys(arm.task for arm in plan.arms))
    if claim.task and claim.task not in tasks:
        raise BenchError(f"the claim {claim.text!r}: no task {claim.task!r} here.{nearest(claim.task, tasks)}")
    about = [claim.task] if claim.task else tasks
    metrics = {arm.metric for arm in plan.arms if arm.task in about}
    asked = {short: name for name, short in METRICS.items()}.get(claim.metric, claim.metric)
    if asked and metrics != {asked}:
        raise BenchError(
            f"the claim {claim.text!r}: {', '.join(about)} is measured by {', '.join(sorted(metrics))}, "
            f"not by {claim.metric}"
        )
    return [(task, _arm(claim, claim.first, task, plan), _arm(claim, claim.second, task, plan)) for task in about]


def _arm(claim: Claim, name: str, task: str, plan: Plan) -> PlannedArm:
    """The one arm of a task that is called `name`."""
    here = [arm for arm in plan.arms if arm.task == task]
    for calls in (_labels, _methods):
        found = [arm for arm in here if name.lower() in {call.lower() for call in calls(arm)}]
        if len(found) == 1:
            return found[0]
        if found:
            labels = ", ".join(label_of(arm) for arm in found)
            raise BenchError(f"the claim {claim.text!r}: {name!r} may be {labels}; write the label")
    known = list(dict.fromkeys(call for arm in here for call in (*_methods(arm), label_of(arm))))
    raise BenchError(
        f"the claim {claim.text!r}: no arm {name!r} on {task}; there is {', '.join(known)}.{nearest(name, known)}"
    )


def _labels(arm: PlannedArm) -> set[str]:
    return {label_of(arm), arm.id}


def _methods(arm: PlannedArm) -> list[str]:
    return [f"{arm.method}:{arm.variant}" if arm.variant else arm.method]


def evidence(outcomes: Outcomes, comparisons: Sequence[Comparison]) -> list[Evidence]:
    """Every claim of the study on every task it is about, with what the data say."""
    by_task = {comparison.task: comparison for comparison in comparisons}
    return [
        _evidence(claim, by_task[task], first, second)
        for claim in check(outcomes.plan)
        for task, first, second in _tasks(claim, outcomes.plan)
    ]


def _evidence(claim: Claim, comparison: Comparison, first: PlannedArm, second: PlannedArm) -> Evidence:
    scored = {score.arm.planned.id for score in comparison.scores}
    lacking = [label_of(arm) for arm in (first, second) if arm.id not in scored]
    if lacking:
        return _unsupported(claim, comparison.task, f"{' and '.join(lacking)}: no score yet")
    found = comparison.between(first.id, second.id)
    if found.conflicts:
        return _unsupported(claim, comparison.task, f"not comparable: {'; '.join(found.conflicts)}")
    low, high = found.interval
    if claim.alike:
        supported, p = -claim.points < low and high < claim.points, max(_p(found, s * claim.points) for s in (-1, 1))
    else:
        supported, p = low > claim.points and (claim.points > 0 or found.p <= intervals.ALPHA), _p(found, claim.points)
    says = f"{label_of(first)} {MINUS} {label_of(second)} is {points(found.value)} points, " + (
        f"95 % interval {points(low)} to {points(high)}"
    )
    return Evidence(claim.text, supported, comparison.task, f"{'supported' if supported else 'not supported'}: {says}",
                    found.value, low, high, p, _why(claim, found, supported))  # fmt: skip


def _p(found: Difference, against: float) -> float:
    """Two-sided p of a difference that is `against`, from the difference found and its deviation."""
    if against == 0:
        return found.p
    deviation = variance_components.deviation(found.interval, found.freedom)
    return intervals.student(found.value - against, deviation, found.freedom)[1]


def _why(claim: Claim, found: Difference, supported: bool) -> str:
    place = f"within {claim.points:g} points of 0" if claim.alike else f"above {claim.points:g}"
    return f"the interval, over {OVER[found.scope]}, {'lies' if supported else 'does not lie'} {place}"


def _unsupported(claim: Claim, task: str, why: str) -> Evidence:
    return Evidence(claim.text, False, task, f"not supported: {why}", nan, nan, nan, nan, why)
