"""Numbered notes under the tables: where a stage departs from its method's published recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from bench.compare.outcomes import Outcomes
from bench.compare.text import escaped, shortened
from bench.spec import PlannedArm, Stage

ARROW = "\u2192"


class Notes(NamedTuple):
    """Texts, numbered from 1 in order, and the numbers that belong to every arm by its id."""

    texts: tuple[str, ...]
    of_arm: dict[str, tuple[int, ...]]


def departures(outcomes: Outcomes) -> Notes:
    """A note for every different set of departures; arms whose stages depart alike share it."""
    numbers: dict[str, int] = {}
    of_arm = {}
    for arm in outcomes.plan.arms:
        texts = [_note(stage) for stage in _trained(outcomes, arm) if stage.departures]
        of_arm[arm.id] = tuple(dict.fromkeys(numbers.setdefault(text, len(numbers) + 1) for text in texts))
    return Notes(tuple(numbers), of_arm)


def _trained(outcomes: Outcomes, arm: PlannedArm) -> list[Stage]:
    """Stages of an arm's first seed that train something, in their order; other seeds depart in the same way."""
    seed = min(arm.stages)
    own, upstream = outcomes.own(arm, seed), outcomes.upstream(arm, seed)
    return [held.stage for held in (*upstream, own)]


def _note(stage: Stage) -> str:
    name = f"{stage.method}:{stage.variant}" if stage.variant else stage.method
    changes = [
        f"{escaped(key.removeprefix('recipe.'))} {_value(published)} {ARROW} {_value(here)}"
        for key, (published, here) in sorted(stage.departures.items())
    ]
    return f"**{escaped(name)}, {stage.kind} for {escaped(stage.task)}**: {'; '.join(changes)}"


def _value(value: Any) -> str:
    """A value of a recipe as a person would write it."""
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(_value(part) for part in value) + ")"
    if isinstance(value, Mapping):
        return escaped(str(dict(value)))
    return escaped(shortened(str(value)))
