"""Runs, outcomes, reports and differences as text for people and as JSON for programs."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli import watch
from bench.cli.formatting import Row, format_rows, format_value
from bench.cli.progress import stage_name
from bench.cli.render_plan import ON_PAGE
from bench.config.stage import Plan, Stage, Start
from bench.errors import BenchError, ExitCode
from bench.launch.scheduler import PlanOutcome
from bench.launch.settings import read_settings
from bench.runs.run import Run

if TYPE_CHECKING:
    from bench.reporting import Report
    from bench.runs.diff import DifferingValue

MISSING_SHOWN = 20  # lines


def outcome_json(plan: Plan, outcome: PlanOutcome) -> dict[str, Any]:
    """How every stage of a plan ended, for programs."""
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
    """How the stages of a plan ended, in a few lines."""
    results = [outcome.results.get(key, "interrupted") for key in plan.stages]
    counted = ", ".join(f"{results.count(result)} {result}" for result in dict.fromkeys(results))
    lines = [f"{plan.study.name}: {len(results)} stages: {counted}"]
    lines += [f"failed: {stage_name(plan.stages[key])}, see {Path(output) / 'runs' / plan.stages[key].folder}"
              for key, result in outcome.results.items() if result == "failed"]  # fmt: skip
    if outcome.exit_code in (ExitCode.INTERRUPTED, ExitCode.CTRL_C, 128 + signal.SIGTERM):
        lines.append("the same command resumes from here")
    else:
        lines.append(f"report: bench compare {plan.study.name}{_output_option(output)}")
    return "\n".join(lines)


def _output_option(output: Path) -> str:
    return "" if Path(output) == Path("results") else f" --output-dir {output}"


def report_text(report: Report) -> str:
    """The main tables, the answer and the claims of a report, and the path of its files."""
    parts = []
    for task, rows in report.rows.items():
        parts += [task, "", format_rows([{name: row[name] for name in row if name not in ON_PAGE} for row in rows]), ""]
    parts += [*report.answer, *(f"missing: {name}" for name in report.missing[:MISSING_SHOWN])]
    if len(report.missing) > MISSING_SHOWN:
        parts.append(f"missing: {len(report.missing) - MISSING_SHOWN} more, all in the report")
    parts += [f"claim {claim.text!r} on {claim.task}: {claim.sentence}; {claim.why}" for claim in report.claims]
    parts += ["", f"report: {report.folder / 'report.html'} and {report.folder / 'report.md'}, tables beside them"]
    return "\n".join(parts)


def report_json(report: Report) -> dict[str, Any]:
    """The path and the main results of a report, for programs; the rest is in its report.json."""
    return {
        "folder": str(report.folder),
        "complete": report.complete,
        "missing": list(report.missing),
        "answer": list(report.answer),
        "rows": report.rows,
        "claims": [asdict(claim) for claim in report.claims],
    }


def differences_text(differences: Sequence[DifferingValue]) -> str:
    """Values that differ between two arms or runs, a table for each reason."""
    if not differences:
        return "nothing differs"
    parts = []
    for why in dict.fromkeys(value.why for value in differences):
        rows = [
            {
                "stage": value.stage or "all",
                "key": value.key,
                "first": format_value(value.first),
                "second": format_value(value.second),
                "because of": " / ".join(dict.fromkeys(filter(None, value.origins))),
            }
            for value in differences
            if value.why == why
        ]
        parts += [why, "", format_rows(rows), ""]
    return "\n".join(parts[:-1])


@contextmanager
def screen() -> Iterator[Callable[[watch.StudyProgress], None]]:
    """A function that shows the progress of a study: redrawn in place on a terminal, printed again elsewhere."""
    if not sys.stdout.isatty():
        yield lambda table: print(watch_text(table), flush=True)
        return
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        yield lambda table: live.update(Text(watch_text(table)), refresh=True)


def watch_text(table: watch.StudyProgress) -> str:
    """The progress of a study: arms x stages, and the errors of those that failed."""
    head = f"{table.study}: {table.finished} of {table.total} stages done"
    return "\n".join([head, "", format_rows(watch.rows(table)), *watch.errors(table)])


def run_row(run: Run) -> Row:
    """A run in one row; of a folder that cannot be read, the reason."""
    try:
        stage, status = run.stage(), run.status()
        results = run.results().get("metrics", {}) if status.state == "done" else {}
    except BenchError as error:
        return {"run": run.root.name, "stage": "unreadable", "state": "-", "steps": "", "result": str(error)}
    result = ", ".join(f"{name} {format_value(value)}" for name, value in results.items() if isinstance(value, float))
    steps = f"{status.step:,}/{status.steps:,}" if status.steps else ""
    return {
        "run": run.root.name, "stage": stage_name(stage), "state": status.state, "steps": steps, "result": result
    }  # fmt: skip


def run_json(run: Run) -> dict[str, Any]:
    """A run with its state, results and values, for programs."""
    stage, status = run.stage(), run.status()
    return {
        "folder": str(run.root),
        "key": stage.key,
        "status": {name: value for name, value in status._asdict().items() if name != "outputs"},
        "weights_from_outside": [{"stage": kind, **start.model_dump()} for kind, start in _pretrained_weights(run)],
        "holder": run.holder(),
        "attempts": run.attempts(),
        "results": run.results() if status.state == "done" else None,
        "last_records": [asdict(record) for record in run.records()[-20:]],
        "stage": stage.model_dump(mode="json"),
    }


def run_text(run: Run) -> str:
    """A run with its state, results and values, for people."""
    stage, status = run.stage(), run.status()
    lines = [f"{run.root}", f"{stage_name(stage)}: {status.state}, step {status.step:,} of {status.steps:,}"]
    if status.error:
        lines.append(f"error: {status.error}")
    lines += [f"pretrained weights, {kind}: {_start(start)}" for kind, start in _pretrained_weights(run)]
    lines += [_attempt(attempt) for attempt in run.attempts()]
    if status.state == "done":
        lines += ["", "results", *(f"  {name}: {value}" for name, value in run.results().items())]
    last = {(record.split, record.metric): record for record in run.records()}
    if last:
        rows = [
            {"split": split, "metric": metric, "last value": format_value(record.value), "step": f"{record.step:,}"}
            for (split, metric), record in last.items()
        ]
        lines += ["", format_rows(rows)]
    lines += ["", "values", format_rows(_values(stage))]
    return "\n".join(lines)


def _pretrained_weights(run: Run) -> list[tuple[str, Start]]:
    """The pretrained weights that a run and its earlier stages start from, with the kind of that stage."""
    stage = run.stage()
    folders = read_settings(run).parents if stage.parents and run.path("launch.json").is_file() else {}
    earlier = [Run(Path(folder)) for folder in folders.values() if (Path(folder) / "stage.json").is_file()]
    upstream = [weights for parent in earlier for weights in _pretrained_weights(parent)]
    return [*upstream, *([(stage.kind, stage.start)] if stage.start else [])]


def _start(start: Start) -> str:
    """Pretrained weights: id, hash, revision and path."""
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
        {
            "key": f"{part}.{name}",
            "value": format_value(value),
            "origin": stage.origins.get(f"{part}.{name}", "default"),
        }
        for part, values in parts.items()
        for name, value in values.items()
    ]
