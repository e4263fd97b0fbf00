"""Plans, runs and outcomes as text for people and as JSON for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import power, watching
from bench.forecast import Forecast
from bench.plan import Drawn
from bench.progress import duration, name_of
from bench.run import Outcome
from bench.settings import read_settings
from bench.spec import BenchError, Plan, Stage, Start
from bench.store import Run
from bench.values import Written

if TYPE_CHECKING:
    from bench.compare import Report
    from bench.differing import Differing

Row = dict[str, str]
ON_PAGE = ("parameters", "fidelity", "departures")  # columns of a report that a terminal has no room for
MISSING_SHOWN = 20  # lines


def aligned(rows: Sequence[Row]) -> str:
    """Rows as columns of text under their names; numbers to the right."""
    if not rows:
        return "none"
    columns = list(rows[0])
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    right = {name for name in columns if all(row[name][:1].isdigit() or row[name] in ("", "?") for row in rows)}
    lines = [
        "  ".join(row[name].rjust(widths[name]) if name in right else row[name].ljust(widths[name]) for name in columns)
        for row in [dict(zip(columns, columns, strict=True)), *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def short(number: float, unit: str = "") -> str:
    """1234567 -> '1.23 M'; three digits and a prefix."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if abs(number) < 999.5:
            return f"{number:.3g} {prefix}{unit}".strip()
        number /= 1000
    return f"{number:.3g} Z{unit}"


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


def shown(value: Any) -> str:
    """A value as one would write it."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(shown(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def explained(found: Iterable[tuple[str, str, list[Written]]]) -> str:
    """Who wrote a value, in order; the last one holds."""
    lines = []
    for kind, method, written in found:
        lines.append(f"{method}, {kind}: {shown(written[-1].value)}")
        lines += [f"  {shown(value)}  {origin}{' (published)' if p else ''}" for value, origin, p in written]
    return "\n".join(lines)


def plan_json(drawn: Drawn, forecasts: Sequence[Forecast]) -> dict[str, Any]:
    """A plan for programs."""
    return {
        "study": drawn.plan.study.model_dump(mode="json"),
        "arms": [arm.model_dump(mode="json") for arm in drawn.plan.arms],
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
        "departures": departures(drawn.plan),
        "detectable": power.sentences(drawn.plan),
    }


def outcome_json(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """What became of a plan, for programs."""
    return {
        "study": plan.study.name,
        "exit_code": outcome.exit_code,
        "stages": [
            {"folder": stage.folder, "key": key, "kind": stage.kind, "method": stage.method, "task": stage.task,
             "seed": stage.seed, "fate": outcome.fates.get(key, "interrupted"), "reason": outcome.reasons.get(key, "")}
            for key, stage in plan.stages.items()
        ],
    }  # fmt: skip


def outcome_text(plan: Plan, outcome: Outcome, output: Path) -> str:
    """What became of a plan, in a few lines."""
    fates = [outcome.fates.get(key, "interrupted") for key in plan.stages]
    counted = ", ".join(f"{fates.count(fate)} {fate}" for fate in dict.fromkeys(fates))
    lines = [f"{plan.study.name}: {len(fates)} stages: {counted}"]
    lines += [f"failed: {name_of(plan.stages[key])}, see {Path(output) / 'runs' / plan.stages[key].folder}"
              for key, fate in outcome.fates.items() if fate == "failed"]  # fmt: skip
    if outcome.exit_code in (75, 130, 143):
        lines.append("the same command goes on from here")
    else:
        lines.append(f"report: bench compare {plan.study.name}{_elsewhere(output)}")
    return "\n".join(lines)


def _elsewhere(output: Path) -> str:
    return "" if Path(output) == Path("results") else f" --output-dir {output}"


def report_text(report: Report) -> str:
    """The main tables and the answers of a report, and where it lies."""
    parts = []
    for task, rows in report.rows.items():
        parts += [task, "", aligned([{name: row[name] for name in row if name not in ON_PAGE} for row in rows]), ""]
    parts += [*report.answer, *(f"missing: {name}" for name in report.missing[:MISSING_SHOWN])]
    if len(report.missing) > MISSING_SHOWN:
        parts.append(f"missing: {len(report.missing) - MISSING_SHOWN} more, all in the report")
    parts += [f"claim {claim.text!r} on {claim.task}: {claim.sentence}; {claim.why}" for claim in report.claims]
    parts += ["", f"report: {report.folder / 'report.html'} and {report.folder / 'report.md'}, tables beside them"]
    return "\n".join(parts)


def report_json(report: Report) -> dict[str, Any]:
    """Where a report lies and what it found, for programs; all of it is in its report.json."""
    return {
        "folder": str(report.folder),
        "complete": report.complete,
        "missing": list(report.missing),
        "answer": list(report.answer),
        "rows": report.rows,
        "claims": [claim._asdict() for claim in report.claims],
    }


def differing_text(found: Sequence[Differing]) -> str:
    """What differs between two arms or runs, a table for each reason."""
    if not found:
        return "nothing differs"
    parts = []
    for why in dict.fromkeys(one.why for one in found):
        rows = [
            {
                "stage": one.stage or "all",
                "key": one.key,
                "first": shown(one.first),
                "second": shown(one.second),
                "because of": " / ".join(dict.fromkeys(filter(None, one.origins))),
            }
            for one in found
            if one.why == why
        ]
        parts += [why, "", aligned(rows), ""]
    return "\n".join(parts[:-1])


@contextmanager
def screen() -> Iterator[Callable[[watching.Table], None]]:
    """Where a study is watched: a terminal is redrawn, anything else gets one look after another."""
    if not sys.stdout.isatty():
        yield lambda table: print(watch_text(table), flush=True)
        return
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        yield lambda table: live.update(Text(watch_text(table)), refresh=True)


def watch_text(table: watching.Table) -> str:
    """A study under way: arms x stages, and why any of them failed."""
    head = f"{table.study}: {table.finished} of {table.total} stages done"
    return "\n".join([head, "", aligned(watching.rows(table)), *watching.errors(table)])


def run_row(run: Run) -> Row:
    """A run in one row; a folder that cannot be read says why."""
    try:
        stage, status = run.stage(), run.status()
        results = run.results().get("metrics", {}) if status.state == "done" else {}
    except BenchError as error:
        return {"run": run.root.name, "stage": "unreadable", "state": "-", "steps": "", "result": str(error)}
    result = ", ".join(f"{name} {shown(value)}" for name, value in results.items() if isinstance(value, float))
    steps = f"{status.step:,}/{status.steps:,}" if status.steps else ""
    return {
        "run": run.root.name, "stage": name_of(stage), "state": status.state, "steps": steps, "result": result
    }  # fmt: skip


def run_json(run: Run) -> dict[str, Any]:
    """All that is known about a run, for programs."""
    stage, status = run.stage(), run.status()
    return {
        "folder": str(run.root),
        "key": stage.key,
        "status": {name: value for name, value in status._asdict().items() if name != "outputs"},
        "weights_from_outside": [{"stage": kind, **start.model_dump()} for kind, start in _outside(run)],
        "holder": run.holder(),
        "attempts": run.attempts(),
        "results": run.results() if status.state == "done" else None,
        "last_records": [record._asdict() for record in run.records()[-20:]],
        "stage": stage.model_dump(mode="json"),
    }


def run_text(run: Run) -> str:
    """All that is known about a run, for people."""
    stage, status = run.stage(), run.status()
    lines = [f"{run.root}", f"{name_of(stage)}: {status.state}, step {status.step:,} of {status.steps:,}"]
    if status.error:
        lines.append(f"error: {status.error}")
    lines += [f"weights from outside, {kind}: {_start(start)}" for kind, start in _outside(run)]
    lines += [_attempt(attempt) for attempt in run.attempts()]
    if status.state == "done":
        lines += ["", "results", *(f"  {name}: {value}" for name, value in run.results().items())]
    last = {(record.split, record.metric): record for record in run.records()}
    if last:
        rows = [
            {"split": split, "metric": metric, "last value": shown(record.value), "step": f"{record.step:,}"}
            for (split, metric), record in last.items()
        ]
        lines += ["", aligned(rows)]
    lines += ["", "values", aligned(_values(stage))]
    return "\n".join(lines)


def _outside(run: Run) -> list[tuple[str, Start]]:
    """The weights from outside that a run goes back to, with the kind of the stage that starts from them."""
    stage = run.stage()
    folders = read_settings(run).parents if stage.parents and run.path("launch.json").is_file() else {}
    earlier = [Run(Path(folder)) for folder in folders.values() if (Path(folder) / "stage.json").is_file()]
    before = [found for parent in earlier for found in _outside(parent)]
    return [*before, *([(stage.kind, stage.start)] if stage.start else [])]


def _start(start: Start) -> str:
    """Weights from outside: what they are, and where they were found."""
    revision = f", revision {start.revision[:12]}" if start.revision else ""
    return f"{start.id}, sha256 {start.digest}{revision}, in {start.root}"


def _attempt(facts: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts.get("time", 0)))
    rest = ", ".join(f"{name} {value}" for name, value in facts.items() if name not in ("time", "event"))
    return f"{facts.get('event', 'attempt')} {when}, {rest}"


def _values(stage: Stage) -> list[Row]:
    parts = {
        "recipe": stage.recipe.model_dump(mode="json") if stage.recipe else {},
        "options": stage.options,
        "model": stage.model.model_dump(mode="json"),
        "protocol": stage.protocol.model_dump(mode="json"),
    }
    return [
        {"key": f"{part}.{name}", "value": shown(value), "origin": stage.origins.get(f"{part}.{name}", "default")}
        for part, values in parts.items()
        for name, value in values.items()
    ]
