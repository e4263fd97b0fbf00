"""Diff of two arms or two runs, value by value: varied on purpose, a consequence of that, or unexplained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bench.config.stage import Plan, PlannedArm, Stage
from bench.errors import BenchError, unknown
from bench.files import read_json
from bench.runs.run import Run
from bench.runs.store import find_run, read_plan, run_of

Why = Literal["varied on purpose", "follows from that", "unexplained"]
ORDER: tuple[Why, ...] = ("varied on purpose", "follows from that", "unexplained")
CHOSEN = ("method", "variant", "size", "task", "seed")  # what names an arm
# How the origins of values begin that a person set for a comparison.
DELIBERATE = ("arm of study", "--set", "command line", "environment")
ENVIRONMENT = ("bench", "git", "python", "packages", "cpu", "devices")  # of environment.json; the rest always differs
ABSENT = "-"


class DifferingValue(NamedTuple):
    """A value that two sides do not share."""

    why: Why
    stage: str  # finetune; "" for what holds for all stages
    key: str
    first: Any  # ABSENT where a side does not have it
    second: Any
    origins: tuple[str, str]


class Side(NamedTuple):
    """One of the two arms or runs that are compared."""

    name: str
    stages: Mapping[str, Stage]  # by role
    environment: Mapping[str, Any]  # of the last stage


def diff_arms(output: Path, study: str, names: tuple[str, str]) -> list[DifferingValue]:
    """Diff two arms of a stored study. names: label, label/task or id, or the beginning of a label or id."""
    plan = read_plan(output, study)
    first, second = (_side_of(plan, _arm(plan, name), output) for name in names)
    return diff_sides(first, second)


def diff_runs(output: Path, names: tuple[str, str]) -> list[DifferingValue]:
    """Diff two runs, each with the runs before it. names: folder, or the beginning of a folder name or key."""
    first, second = (_side_of_run(find_run(output, name)) for name in names)
    return diff_sides(first, second)


def diff_sides(first: Side, second: Side) -> list[DifferingValue]:
    """All values that differ between two sides, those varied on purpose first."""
    chosen = _identity(first), _identity(second)
    values = [_value("varied on purpose", "", key, *pair) for key, pair in _unequal(*chosen)]
    explained = bool(values)
    for role in dict.fromkeys([*first.stages, *second.stages]):
        values += _diff_stages(role, first.stages.get(role), second.stages.get(role), explained)
    values += [_value("unexplained", "", *row) for row in _rows(first.environment, second.environment)]
    return sorted(values, key=lambda value: ORDER.index(value.why))


def _value(why: Why, stage: str, key: str, first: Any, second: Any) -> DifferingValue:
    return DifferingValue(why, stage, key, first, second, ("", ""))


def _diff_stages(role: str, first: Stage | None, second: Stage | None, explained: bool) -> list[DifferingValue]:
    if first is None or second is None:
        why: Why = "follows from that" if explained else "unexplained"
        return [_value(why, role, "stage", *("there" if side else ABSENT for side in (first, second)))]
    rows = _rows(_values(first), _values(second))
    return [_with_origin(role, row, first, second, explained) for row in rows]


def _with_origin(role: str, row: tuple[str, Any, Any], first: Stage, second: Stage, explained: bool) -> DifferingValue:
    key, *values = row
    origins = first.origins.get(key, ""), second.origins.get(key, "")
    deliberate = any(origin.startswith(DELIBERATE) for origin in origins)
    other_data = key.startswith("data.") and first.task == second.task and key.endswith("identity")
    why: Why = "follows from that" if explained and not other_data else "unexplained"
    return DifferingValue("varied on purpose" if deliberate else why, role, key, values[0], values[1], origins)


def _values(stage: Stage) -> dict[str, Any]:
    """All that determines the result of a stage, except its parents: 'recipe.lr' -> 0.001."""
    body = stage.identity()
    # An evaluation has no recipe, and its model is that of its parent, where it is listed already.
    own = ("protocol", "data") if stage.kind == "evaluate" else ("recipe", "options", "model", "protocol", "data")
    return _flat({name: body[name] or {} for name in own}) | {"version": stage.version}


def _flat(nested: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        place = f"{before}{name}"
        flat |= _flat(value, f"{place}.") if isinstance(value, Mapping) else {place: value}
    return flat


def _rows(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(key, *pair) for key, pair in _unequal(first, second)]


def _unequal(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterable[tuple[str, tuple[Any, Any]]]:
    for key in dict.fromkeys([*first, *second]):
        pair = first.get(key, ABSENT), second.get(key, ABSENT)
        if pair[0] != pair[1]:
            yield key, pair


def _identity(side: Side) -> dict[str, Any]:
    """Method, variant, size, task and seed, of the last stage."""
    last = list(side.stages.values())[-1]
    return {name: last.model.size if name == "size" else getattr(last, name) for name in CHOSEN}


def _arm(plan: Plan, name: str) -> PlannedArm:
    exact = [arm for arm in plan.arms if name in (arm.id, arm.label, f"{arm.label}/{arm.task}")]
    near = exact or [arm for arm in plan.arms if arm.id.startswith(name) or arm.label.startswith(name)]
    if not near:
        raise unknown(f"arm of {plan.study.name}", name, [f"{arm.label}/{arm.task}" for arm in plan.arms])
    if len(near) > 1:
        raise BenchError(
            f"{name!r} is ambiguous: {', '.join(f'{arm.label}/{arm.task}' for arm in near)}; write more of it"
        )
    return near[0]


def _side_of(plan: Plan, arm: PlannedArm, output: Path) -> Side:
    """An arm, represented by its lowest seed."""
    stages = {role: plan.stages[key] for role, key in arm.stages[min(arm.stages)].items()}
    last = run_of(output, list(stages.values())[-1])
    return Side(arm.id, stages, _environment(last))


def _side_of_run(run: Run) -> Side:
    """A run, with the runs in the same output folder that it starts from."""
    chain: dict[str, Stage] = {}
    waiting = [run]
    while waiting:
        current = waiting.pop()
        stage = current.stage()
        chain = {stage.kind: stage, **chain}  # parents first, as in the stages of an arm
        for key in stage.parents.values():
            waiting += [Run(folder) for folder in current.root.parent.glob(f"*-{key[:12]}")]
    return Side(run.root.name, chain, _environment(run))


def _environment(run: Run) -> dict[str, Any]:
    """Versions and devices of a run; {} before it started."""
    path = run.path("environment.json")
    values = read_json(path) if path.exists() else {}
    return _flat({name: values[name] for name in ENVIRONMENT if name in values})
