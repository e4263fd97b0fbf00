"""Departures from the published recipes, as numbered notes under the tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from bench.config.stage import PlannedArm, Stage
from bench.reporting.analysis.outcomes import Outcomes, label_of
from bench.reporting.formatting import NO_VALUE, escaped, shortened

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
        texts = [_note(stage) for stage in _training_stages(outcomes, arm) if stage.departures]
        of_arm[arm.id] = tuple(dict.fromkeys(numbers.setdefault(text, len(numbers) + 1) for text in texts))
    return Notes(tuple(numbers), of_arm)


def differing_values(outcomes: Outcomes, task: str) -> list[dict[str, str]]:
    """Values of models and recipes in which arms of a task that have them differ: a row per value, a column per arm."""
    arms = [arm for arm in outcomes.plan.arms if arm.task == task]
    values = [_values(outcomes, arm) for arm in arms]
    keys = dict.fromkeys(key for own in values for key in own)
    names = [escaped(label_of(arm)) for arm in arms]
    return [
        {"value": escaped(key), **{name: own.get(key, NO_VALUE) for name, own in zip(names, values, strict=True)}}
        for key in keys
        if len({own[key] for own in values if key in own}) > 1
    ]


def _values(outcomes: Outcomes, arm: PlannedArm) -> dict[str, str]:
    """'last stage: lr' -> '0.001': of all training stages of an arm's first seed, in their order."""
    *upstream, last = _training_stages(outcomes, arm)
    values = {"stages": ", ".join(stage.kind for stage in (*upstream, last))}
    for name, stage in [*((stage.kind, stage) for stage in upstream), ("last stage", last)]:
        values |= {f"{name}: {key}": _value(value) for key, value in _settings(stage).items()}
    return values


def _settings(stage: Stage) -> dict[str, Any]:
    """Everything decided about a stage that trains, by name."""
    recipe = stage.recipe.model_dump(mode="json") if stage.recipe else {}
    return {**stage.model.model_dump(mode="json"), **recipe, **stage.options}


def _training_stages(outcomes: Outcomes, arm: PlannedArm) -> list[Stage]:
    """The training stages of an arm's first seed, in their order; other seeds depart in the same way."""
    seed = min(arm.stages)
    return [run.stage for run in (*outcomes.upstream(arm, seed), outcomes.last_stage(arm, seed))]


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
