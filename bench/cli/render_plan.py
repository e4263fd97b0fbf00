"""Plans as text for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.cli.formatting import Row, format_number, format_rows, format_value
from bench.cli.progress import duration, stage_name
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
            "stage": stage_name(f.stage),
            "state": f.state,
            "after": ", ".join(_inputs(f.stage, stages)) or "-",
            "steps": f"{f.cost.steps:,}",
            "images": format_number(f.cost.images),
            "parameters": format_number(f.cost.parameters),
            "FLOPs": format_number(f.cost.flops),
            "memory": format_number(f.cost.memory, "B"),
            "disk": format_number(f.cost.disk, "B"),
            "time": "?" if f.seconds is None else duration(f.seconds),
        }
        for f in forecasts
    ]


def _inputs(stage: Stage, stages: dict[str, Stage]) -> list[str]:
    """What a stage starts from: folders of earlier stages, and pretrained weights."""
    return [*(stages[key].folder for key in stage.parents.values()), *([stage.start.id] if stage.start else [])]


def plan_text(plan: Plan, forecasts: Sequence[Forecast]) -> str:
    """A plan for people: stages with their costs, totals, data, departures from the papers, detectable differences."""
    title = f"{plan.study.name}: {len(plan.arms)} arms"
    parts = [title, "", format_rows(plan_rows(forecasts, plan.stages)), "", totals(forecasts)]
    parts += filter(None, [sharing(plan, forecasts)])
    parts += ["", "data", "", format_rows(data_rows(plan))]
    if rows := departures(plan):
        parts += ["", "differs from the published recipe", "", format_rows(rows)]
    if sentences := power.sentences(plan):
        parts += ["", *sentences]
    return "\n".join(parts)


def totals(forecasts: Sequence[Forecast]) -> str:
    """What remains to be run, in one line."""
    remaining = [f for f in forecasts if f.state != "done"]
    seconds = [f.seconds for f in remaining if f.seconds is not None]
    complete = len(seconds) == len(remaining)  # a partial sum would be too low
    time = f"{duration(sum(seconds))} one after another" if complete else "of unknown duration (--probe)"
    images, flops = sum(f.cost.images for f in remaining), sum(f.cost.flops for f in remaining)
    done = len(forecasts) - len(remaining)
    return (
        f"{len(forecasts)} stages, {done} done, {len(remaining)} to do: {format_number(images)} images, "
        f"{format_number(flops)} FLOPs, {format_number(sum(f.cost.disk for f in remaining), 'B')} of disk, {time}"
    )


def sharing(plan: Plan, forecasts: Sequence[Forecast]) -> str:
    """The totals if arms and seeds shared no stages; '' where they share none."""
    costs = {f.stage.key: f.cost for f in forecasts}
    unshared = [costs[key] for arm in plan.arms for by_role in arm.stages.values() for key in by_role.values()]
    if len(unshared) == len(costs):
        return ""
    flops, flops_unshared = (sum(cost.flops for cost in stages) for stages in (costs.values(), unshared))
    times = f"{flops_unshared / flops:.3g} times as many"
    images = sum(cost.images for cost in unshared)
    return (
        f"shared by several arms or seeds, counted once: without sharing {len(unshared)} stages, "
        f"{format_number(images)} images, {format_number(flops_unshared)} FLOPs ({times})"
    )


def data_rows(plan: Plan) -> list[Row]:
    """Every split that a stage uses, once: its images, and what of it is left out."""
    used: dict[tuple[str, ...], list[str]] = {}
    for stage in plan.stages.values():
        for role, data in stage.data.items():
            split = (f"{data.dataset}/{data.split}", f"{data.images:,}", data.labels or "all",
                     data.manifest or "generated", data.shortfall or "nothing")  # fmt: skip
            used.setdefault(split, []).append(f"{stage.kind} ({role})")
    names = ("data", "images", "labels", "root hash", "left out")
    return [
        dict(zip(names, split, strict=True)) | {"seen by": ", ".join(dict.fromkeys(kinds))}
        for split, kinds in used.items()
    ]


def departures(plan: Plan) -> list[Row]:
    """Every value that differs from the method's published recipe, once for all seeds."""
    rows: dict[tuple[str, ...], Row] = {}
    for stage in plan.stages.values():
        for address, (published, here) in stage.departures.items():
            who = f"{stage.method}:{stage.variant}" if stage.variant else stage.method
            part, _, name = address.partition(".")
            key = f"{stage.kind}.{name}" if part == "recipe" else f"{stage.kind}.{address}"
            row = {
                "method": who,
                "task": stage.task,
                "value": key,
                "published": format_value(published),
                "here": format_value(here),
                "because of": stage.origins.get(address, "what the stage is for"),
            }
            rows.setdefault((who, stage.task, key), row)
    return list(rows.values())


def assignments_text(histories: Iterable[tuple[str, str, list[Assignment]]]) -> str:
    """Every assignment of a value in order, by stage kind and method; the last one is in effect."""
    lines = []
    for kind, method, assignments in histories:
        lines.append(f"{method}, {kind}: {format_value(assignments[-1].value)}")
        lines += [f"  {format_value(value)}  {origin}{' (published)' if p else ''}" for value, origin, p in assignments]
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
