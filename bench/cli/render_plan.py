"""Plans as text for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.cli.formatting import Row, aligned, short, shown
from bench.cli.progress import duration, name_of
from bench.config.overrides import Assignment
from bench.config.stage import Plan, Stage
from bench.planning.forecast import Forecast
from bench.planning.planner import PlanWithHistory
from bench.stats import power

ON_PAGE = ("parameters", "fidelity", "departures")  # columns of a report that a terminal has no room for


def plan_rows(forecasts: Sequence[Forecast], stages: dict[str, Stage]) -> list[Row]:
    """One row for each stage of a plan."""
    return [
        {
            "run": f.stage.folder,
            "stage": name_of(f.stage),
            "state": f.state,
            "after": ", ".join(_before(f.stage, stages)) or "-",
            "steps": f"{f.cost.steps:,}",
            "images": short(f.cost.images),
            "parameters": short(f.cost.parameters),
            "FLOPs": short(f.cost.flops),
            "memory": short(f.cost.memory, "B"),
            "disk": short(f.cost.disk, "B"),
            "time": "?" if f.seconds is None else duration(f.seconds),
        }
        for f in forecasts
    ]


def _before(stage: Stage, stages: dict[str, Stage]) -> list[str]:
    """What a stage starts from: folders of earlier stages, and weights from outside."""
    return [*(stages[key].folder for key in stage.parents.values()), *([stage.start.id] if stage.start else [])]


def plan_text(plan: Plan, forecasts: Sequence[Forecast]) -> str:
    """The graph of stages with their costs, what it adds up to, and what departs from the papers."""
    title = f"{plan.study.name}: {len(plan.arms)} arms"
    parts = [title, "", aligned(plan_rows(forecasts, plan.stages)), "", totals(forecasts)]
    parts += filter(None, [sharing(plan, forecasts)])
    parts += ["", "data", "", aligned(data_rows(plan))]
    if rows := departures(plan):
        parts += ["", "differs from the published recipe", "", aligned(rows)]
    if told := power.sentences(plan):
        parts += ["", *told]
    return "\n".join(parts)


def totals(forecasts: Sequence[Forecast]) -> str:
    """What is left to do, in one line."""
    left = [f for f in forecasts if f.state != "done"]
    known = [f.seconds for f in left if f.seconds is not None]
    took = f"{duration(sum(known))} one after another" if len(known) == len(left) else "of unknown duration (--probe)"
    images, flops = sum(f.cost.images for f in left), sum(f.cost.flops for f in left)
    done = len(forecasts) - len(left)
    return (
        f"{len(forecasts)} stages, {done} done, {len(left)} to do: {short(images)} images, {short(flops)} FLOPs, "
        f"{short(sum(f.cost.disk for f in left), 'B')} of disk, {took}"
    )


def sharing(plan: Plan, forecasts: Sequence[Forecast]) -> str:
    """What the plan would add up to if no arm used a stage of another; '' where none does."""
    costs = {f.stage.key: f.cost for f in forecasts}
    alone = [costs[key] for arm in plan.arms for by_role in arm.stages.values() for key in by_role.values()]
    if len(alone) == len(costs):
        return ""
    once, apart = (sum(cost.flops for cost in found) for found in (costs.values(), alone))
    images = sum(cost.images for cost in alone)
    return (
        f"shared by several arms or seeds, counted once: without sharing {len(alone)} stages, {short(images)} images, "
        f"{short(apart)} FLOPs ({apart / once:.3g} times as many)"
    )


def data_rows(plan: Plan) -> list[Row]:
    """Every split that a stage sees, once: how much it holds, and what of it is left out."""
    used: dict[tuple[str, ...], list[str]] = {}
    for stage in plan.stages.values():
        for role, data in stage.data.items():
            split = (f"{data.dataset}/{data.split}", f"{data.images:,}", data.labels or "all")
            found = (*split, data.manifest or "generated", data.shortfall or "nothing")
            used.setdefault(found, []).append(f"{stage.kind} ({role})")
    names = ("data", "images", "labels", "root hash", "left out")
    return [
        dict(zip(names, split, strict=True)) | {"seen by": ", ".join(dict.fromkeys(kinds))}
        for split, kinds in used.items()
    ]


def departures(plan: Plan) -> list[Row]:
    """Every value that differs from the method's published recipe, once for all seeds."""
    found: dict[tuple[str, ...], Row] = {}
    for stage in plan.stages.values():
        for address, (published, here) in stage.departures.items():
            who = f"{stage.method}:{stage.variant}" if stage.variant else stage.method
            part, _, name = address.partition(".")
            key = f"{stage.kind}.{name}" if part == "recipe" else f"{stage.kind}.{address}"
            row = {"method": who, "task": stage.task, "value": key, "published": shown(published), "here": shown(here)}
            row["because of"] = stage.origins.get(address, "what the stage is for")
            found.setdefault((who, stage.task, key), row)
    return list(found.values())


def explained(found: Iterable[tuple[str, str, list[Assignment]]]) -> str:
    """Who wrote a value, in order; the last one holds."""
    lines = []
    for kind, method, assignments in found:
        lines.append(f"{method}, {kind}: {shown(assignments[-1].value)}")
        lines += [f"  {shown(value)}  {origin}{' (published)' if p else ''}" for value, origin, p in assignments]
    return "\n".join(lines)


def plan_json(planned: PlanWithHistory, forecasts: Sequence[Forecast]) -> dict[str, Any]:
    """A plan for programs."""
    return {
        "study": planned.plan.study.model_dump(mode="json"),
        "arms": [arm.model_dump(mode="json") for arm in planned.plan.arms],
        "stages": [
            {
                "folder": f.stage.folder,
                "key": f.stage.key,
                "state": f.state,
                "expected_seconds": f.seconds,
                **f.cost._asdict(),
                "stage": f.stage.model_dump(mode="json"),
            }
            for f in forecasts
        ],
        "departures": departures(planned.plan),
        "detectable": power.sentences(planned.plan),
    }
