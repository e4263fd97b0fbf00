"""What differs between two arms or two runs, value by value: on purpose, as a consequence, or for no known reason."""

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
CHOSEN = ("method", "variant", "size", "task", "seed")  # what a person chooses when naming an arm
WRITTEN = ("arm of study", "--set", "command line", "environment")  # origins of values written for a comparison
SURROUNDINGS = ("bench", "git", "python", "packages", "cpu", "devices")  # of environment.json; the rest never agrees
ABSENT = "-"


class Differing(NamedTuple):
    """A value that is not the same, or is there only once."""

    why: Why
    stage: str  # finetune; "" for what holds for all stages
    key: str
    first: Any
    second: Any
    origins: tuple[str, str]


class Side(NamedTuple):
    """One of the two: its stages by role, and where the last of them ran."""

    name: str
    stages: Mapping[str, Stage]
    surroundings: Mapping[str, Any]


def arms(output: Path, study: str, names: tuple[str, str]) -> list[Differing]:
    """Two arms of a study that was run or planned to the end; names: label, label/task or id, or its beginning."""
    plan = read_plan(output, study)
    first, second = (_side_of(plan, _arm(plan, name), output) for name in names)
    return differing(first, second)


def runs(output: Path, names: tuple[str, str]) -> list[Differing]:
    """Two run folders, by name or the beginning of it, each with the runs that it goes on from."""
    first, second = (_side_of_run(find_run(output, name)) for name in names)
    return differing(first, second)


def differing(first: Side, second: Side) -> list[Differing]:
    """All that differs between two sides, purposes first."""
    chosen = _chosen(first), _chosen(second)
    found = [_differing("varied on purpose", "", key, *pair) for key, pair in _unequal(*chosen)]
    explained = bool(found)
    for role in dict.fromkeys([*first.stages, *second.stages]):
        found += _of_stage(role, first.stages.get(role), second.stages.get(role), explained)
    found += [_differing("unexplained", "", *row) for row in _rows(first.surroundings, second.surroundings)]
    return sorted(found, key=lambda one: ORDER.index(one.why))


def _differing(why: Why, stage: str, key: str, first: Any, second: Any) -> Differing:
    return Differing(why, stage, key, first, second, ("", ""))


def _of_stage(role: str, first: Stage | None, second: Stage | None, explained: bool) -> list[Differing]:
    if first is None or second is None:
        why: Why = "follows from that" if explained else "unexplained"
        return [_differing(why, role, "stage", *("there" if side else ABSENT for side in (first, second)))]
    rows = _rows(_values(first), _values(second))
    return [_with_origin(role, row, first, second, explained) for row in rows]


def _with_origin(role: str, row: tuple[str, Any, Any], first: Stage, second: Stage, explained: bool) -> Differing:
    key, *values = row
    origins = first.origins.get(key, ""), second.origins.get(key, "")
    written = any(origin.startswith(WRITTEN) for origin in origins)
    other_data = key.startswith("data.") and first.task == second.task and key.endswith("identity")
    why: Why = "follows from that" if explained and not other_data else "unexplained"
    return Differing("varied on purpose" if written else why, role, key, values[0], values[1], origins)


def _values(stage: Stage) -> dict[str, Any]:
    """All that determines the result of a stage but what its parents are: 'recipe.lr' -> 0.001."""
    body = stage.identity()
    learned = () if stage.kind == "evaluate" else ("recipe", "options", "model")  # an evaluation has those of another
    return _flat({name: body[name] or {} for name in (*learned, "protocol", "data")}) | {"version": stage.version}


def _flat(nested: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in nested.items():
        place = f"{before}{name}"
        found |= _flat(value, f"{place}.") if isinstance(value, Mapping) else {place: value}
    return found


def _rows(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(key, *pair) for key, pair in _unequal(first, second)]


def _unequal(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterable[tuple[str, tuple[Any, Any]]]:
    for key in dict.fromkeys([*first, *second]):
        pair = first.get(key, ABSENT), second.get(key, ABSENT)
        if pair[0] != pair[1]:
            yield key, pair


def _chosen(side: Side) -> dict[str, Any]:
    """Method, variant, size, task and seed, of the last stage."""
    last = list(side.stages.values())[-1]
    return {name: last.model.size if name == "size" else getattr(last, name) for name in CHOSEN}


def _arm(plan: Plan, name: str) -> PlannedArm:
    exact = [arm for arm in plan.arms if name in (arm.id, arm.label, f"{arm.label}/{arm.task}")]
    near = exact or [arm for arm in plan.arms if arm.id.startswith(name) or arm.label.startswith(name)]
    if not near:
        raise unknown(f"arm of {plan.study.name}", name, [f"{arm.label}/{arm.task}" for arm in plan.arms])
    if len(near) > 1:
        raise BenchError(f"{name!r} may be {', '.join(f'{arm.label}/{arm.task}' for arm in near)}; write more of it")
    return near[0]


def _side_of(plan: Plan, arm: PlannedArm, output: Path) -> Side:
    """An arm by the stages of its first seed."""
    stages = {role: plan.stages[key] for role, key in arm.stages[min(arm.stages)].items()}
    last = run_of(output, list(stages.values())[-1])
    return Side(arm.id, stages, _surroundings(last))


def _side_of_run(run: Run) -> Side:
    """A run, with the runs beside it that it goes on from."""
    chain: dict[str, Stage] = {}
    waiting = [run]
    while waiting:
        stage = (at := waiting.pop()).stage()
        chain = {stage.kind: stage, **chain}
        beside = [found for key in stage.parents.values() for found in at.root.parent.glob(f"*-{key[:12]}")]
        waiting += [Run(folder) for folder in beside]
    return Side(run.root.name, chain, _surroundings(run))


def _surroundings(run: Run) -> dict[str, Any]:
    """Versions and devices of a run; {} before it began."""
    path = run.path("environment.json")
    found = read_json(path) if path.exists() else {}
    return _flat({name: found[name] for name in SURROUNDINGS if name in found})
