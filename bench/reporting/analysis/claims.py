"""Claims of a study and the evidence of its runs: tests of superiority by a margin, or of equivalence within one.

    beit > deit on imagenet1k/top1 by 0.5       better by at least so many points (0 where nothing is said)
    data2vec ~ beit within 0.2                  equivalent within so many points
An arm is named by its label, its id or its method[:variant]. Without a task, a claim is about every task of the study.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

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


@dataclass(frozen=True, slots=True)
class Claim:
    """`first` is above `second` by at least `points`, or alike within them; on one task, or on all ('')."""

    text: str
    first: str
    second: str
    alike: bool
    points: float
    task: str
    metric: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """A claim on one task, and the difference of its two arms with the 95 % interval, in points.

    The fields are the keys of report.json.
    """

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
    match = FORM.fullmatch(text)
    if not match:
        raise BenchError(f"the claim {text!r} cannot be read; {HELP}")
    first, second, sign, bound = match.group("first", "second", "sign", "bound")
    if (sign == "~") != (bound == "within") and not (sign != "~" and bound is None):
        needed = "'within' and a number of points" if sign == "~" else "'by' and a number of points, or nothing"
        raise BenchError(f"the claim {text!r}: after {sign!r} write {needed}; {HELP}")
    try:
        margin = float(match["points"] or 0)
    except ValueError:  # '0.5.1' fits the form
        raise BenchError(f"the claim {text!r}: {match['points']!r} is not a number of points") from None
    if sign == "<":
        first, second = second, first
    return Claim(text, first, second, sign == "~", margin, match["task"] or "", match["metric"] or "")


def check(plan: Plan) -> list[Claim]:
    """The claims of a study, parsed; BenchError for an unknown arm, task or metric, with the nearest name."""
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
    metric = {short: name for name, short in METRICS.items()}.get(claim.metric, claim.metric)
    if metric and metrics != {metric}:
        raise BenchError(
            f"the claim {claim.text!r}: {', '.join(about)} is measured by {', '.join(sorted(metrics))}, "
            f"not by {claim.metric}"
        )
    return [(task, _arm(claim, claim.first, task, plan), _arm(claim, claim.second, task, plan)) for task in about]


def _arm(claim: Claim, name: str, task: str, plan: Plan) -> PlannedArm:
    """The one arm of a task that is called `name`."""
    of_task = [arm for arm in plan.arms if arm.task == task]
    for names in (_labels, _methods):  # a label is unambiguous where a method is not: two arms may share the method
        arms = [arm for arm in of_task if name.lower() in {own.lower() for own in names(arm)}]
        if len(arms) == 1:
            return arms[0]
        if arms:
            labels = ", ".join(label_of(arm) for arm in arms)
            raise BenchError(f"the claim {claim.text!r}: {name!r} is ambiguous: {labels}; write the label")
    options = list(dict.fromkeys(own for arm in of_task for own in (*_methods(arm), label_of(arm))))
    raise BenchError(
        f"the claim {claim.text!r}: no arm {name!r} on {task}; available: {', '.join(options)}.{nearest(name, options)}"
    )


def _labels(arm: PlannedArm) -> set[str]:
    return {label_of(arm), arm.id}


def _methods(arm: PlannedArm) -> list[str]:
    return [f"{arm.method}:{arm.variant}" if arm.variant else arm.method]


def evidence(outcomes: Outcomes, comparisons: Sequence[Comparison]) -> list[Evidence]:
    """The evidence for every claim of the study on every task it is about."""
    by_task = {comparison.task: comparison for comparison in comparisons}
    return [
        _evidence(claim, by_task[task], first, second)
        for claim in check(outcomes.plan)
        for task, first, second in _tasks(claim, outcomes.plan)
    ]


def _evidence(claim: Claim, comparison: Comparison, first: PlannedArm, second: PlannedArm) -> Evidence:
    ids = {score.arm.planned.id for score in comparison.scores}
    lacking = [label_of(arm) for arm in (first, second) if arm.id not in ids]
    if lacking:
        return _unsupported(claim, comparison.task, f"{' and '.join(lacking)}: no score yet")
    difference = comparison.between(first.id, second.id)
    if difference.conflicts:
        return _unsupported(claim, comparison.task, f"not comparable: {'; '.join(difference.conflicts)}")
    low, high = difference.interval
    supported, p = _test(claim, difference)
    says = f"{label_of(first)} {MINUS} {label_of(second)} is {points(difference.value)} points, " + (
        f"95 % interval {points(low)} to {points(high)}"
    )
    return Evidence(claim.text, supported, comparison.task, f"{'supported' if supported else 'not supported'}: {says}",
                    difference.value, low, high, p, _why(claim, difference, supported))  # fmt: skip


def _test(claim: Claim, difference: Difference) -> tuple[bool, float]:
    """Whether the interval supports the claim, and the p of the test."""
    low, high = difference.interval
    if claim.alike:  # two one-sided tests: the interval lies within the margin, the larger p counts
        p = max(_p(difference, sign * claim.points) for sign in (-1, 1))
        return -claim.points < low and high < claim.points, p
    # without a margin p must agree as well: it may be McNemar's while the interval is the bootstrap's
    significant = claim.points > 0 or difference.p <= intervals.ALPHA
    return low > claim.points and significant, _p(difference, claim.points)


def _p(difference: Difference, margin: float) -> float:
    """Two-sided p of the null hypothesis that the true difference is `margin`."""
    if margin == 0:
        return difference.p
    standard_error = variance_components.standard_error(difference.interval, difference.freedom)
    return intervals.t_interval(difference.value - margin, standard_error, difference.freedom)[1]


def _why(claim: Claim, difference: Difference, supported: bool) -> str:
    place = f"within {claim.points:g} points of 0" if claim.alike else f"above {claim.points:g}"
    return f"the interval, over {OVER[difference.scope]}, {'lies' if supported else 'does not lie'} {place}"


def _unsupported(claim: Claim, task: str, why: str) -> Evidence:
    return Evidence(claim.text, False, task, f"not supported: {why}", nan, nan, nan, nan, why)
