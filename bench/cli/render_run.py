"""Runs, outcomes, reports and differences as text for people and as JSON for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli import watch
from bench.cli.formatting import Row, aligned, shown
from bench.cli.progress import name_of
from bench.cli.render_plan import ON_PAGE
from bench.config.stage import Plan, Stage, Start
from bench.errors import BenchError
from bench.launch.scheduler import PlanOutcome
from bench.launch.settings import read_settings
from bench.runs.run import Run

if TYPE_CHECKING:
    from bench.reporting import Report
    from bench.runs.diff import Differing

MISSING_SHOWN = 20  # lines


def outcome_json(plan: Plan, outcome: PlanOutcome) -> dict[str, Any]:
    """What became of a plan, for programs."""
    return {
        "study": plan.study.name,
        "exit_code": outcome.exit_code,
        "stages": [
            {"folder": stage.folder, "key": key, "kind": stage.kind, "method": stage.method, "task": stage.task,
             "seed": stage.seed, "fate": outcome.results.get(key, "interrupted"),
             "reason": outcome.reasons.get(key, "")}
            for key, stage in plan.stages.items()
        ],
    }  # fmt: skip


def outcome_text(plan: Plan, outcome: PlanOutcome, output: Path) -> str:
    """What became of a plan, in a few lines."""
    results = [outcome.results.get(key, "interrupted") for key in plan.stages]
    counted = ", ".join(f"{results.count(result)} {result}" for result in dict.fromkeys(results))
    lines = [f"{plan.study.name}: {len(results)} stages: {counted}"]
    lines += [f"failed: {name_of(plan.stages[key])}, see {Path(output) / 'runs' / plan.stages[key].folder}"
              for key, result in outcome.results.items() if result == "failed"]  # fmt: skip
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
        "claims": [asdict(claim) for claim in report.claims],
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
def screen() -> Iterator[Callable[[watch.StudyProgress], None]]:
    """Where a study is watched: a terminal is redrawn, anything else gets one look after another."""
    if not sys.stdout.isatty():
        yield lambda table: print(watch_text(table), flush=True)
        return
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        yield lambda table: live.update(Text(watch_text(table)), refresh=True)


def watch_text(table: watch.StudyProgress) -> str:
    """A study under way: arms x stages, and why any of them failed."""
    head = f"{table.study}: {table.finished} of {table.total} stages done"
    return "\n".join([head, "", aligned(watch.rows(table)), *watch.errors(table)])


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
