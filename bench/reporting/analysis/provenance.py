"""Provenance: every stage with its state and environment, every attempt at a run, all data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bench.errors import BenchError
from bench.files import read_json
from bench.reporting.analysis.outcomes import Outcomes, StageRun, environment
from bench.reporting.formatting import NO_VALUE, amount, escaped
from bench.runs.run import Run
from bench.runs.store import all_runs

ENDS = ("interrupted", "failed", "done")  # events of attempts.jsonl that end an attempt
LONGEST_ERROR = 200


class Provenance(NamedTuple):
    """Different environments, numbered from 1 in the order of the plan, and a row per stage, split and attempt.

    The fields are the keys of report.json.
    """

    environments: tuple[dict[str, Any], ...]
    stages: tuple[dict[str, Any], ...]
    data: tuple[dict[str, Any], ...] = ()
    attempts: tuple[dict[str, Any], ...] = ()
    others: tuple[dict[str, Any], ...] = ()  # runs of the same methods and tasks that the plan does not have


def provenance(outcomes: Outcomes) -> Provenance:
    """The facts of all planned stages, also of those that failed or never ran."""
    environments: list[dict[str, Any]] = []
    stages, attempts = [], []
    for stage_run in outcomes.stages.values():
        facts = _facts(environment(stage_run))
        if facts and facts not in environments:
            environments.append(facts)
        own = list(_attempts(stage_run.run))
        number = environments.index(facts) + 1 if facts else None
        stages.append({**_stage(stage_run, number), "starts": len(own)})
        attempts += own
    return Provenance(
        tuple(environments), tuple(stages), tuple(_data(outcomes)), tuple(attempts), tuple(_others(outcomes))
    )


def _attempts(run: Run) -> Iterator[dict[str, Any]]:
    """Every attempt at a run and how it ended; 'unknown' where no event says so."""
    try:
        events = run.attempts()
    except (OSError, ValueError):
        return
    start = 0
    for place, event in enumerate(events):
        if event.get("event") == "started":
            start += 1
            after = events[place + 1] if place + 1 < len(events) else {}
            ended = after["event"] if after.get("event") in ENDS else "unknown"
            lines = str(after.get("error") or "").strip().splitlines()
            error = lines[0] if lines and ended == "failed" else ""
            yield {"folder": run.root.name, "start": start, "device": str(event.get("device", "")), "ended": ended,
                   "processes": event.get("processes"), "error": error}  # fmt: skip


def _data(outcomes: Outcomes) -> list[dict[str, Any]]:
    """Every split that a stage trained on or was scored on, once."""
    splits: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run in outcomes.stages.values():
        for role, data in run.stage.data.items():
            row = {"dataset": data.dataset, "split": data.split, "images": data.images, "identity": data.identity,
                   "manifest": data.manifest, "labels": data.labels, "shortfall": data.shortfall}  # fmt: skip
            roles = splits.setdefault(tuple(row.values()), {**row, "roles": []})["roles"]
            use = f"{run.stage.kind} {role}"
            roles += [] if use in roles else [use]
    return list(splits.values())


def _others(outcomes: Outcomes) -> Iterator[dict[str, Any]]:
    """Runs beside those of the plan, of its methods and tasks: what else was tried."""
    planned = {run.stage.folder for run in outcomes.stages.values()}
    pairs = {(run.stage.method, run.stage.task) for run in outcomes.stages.values()}
    for run in all_runs(outcomes.results):
        if run.root.name in planned:
            continue
        try:
            stage, state = read_json(run.path("stage.json"))["stage"], run.status().state
            if (stage["method"], stage["task"]) in pairs:
                names = ("kind", "method", "variant", "task", "seed")
                yield {"folder": run.root.name, **{name: stage[name] for name in names}, "state": state}
        except (BenchError, KeyError, TypeError):  # a damaged run of another study does not concern this report
            continue


def _stage(run: StageRun, number: int | None) -> dict[str, Any]:
    stage = run.stage
    return {
        "folder": stage.folder,
        "key": run.key,
        "kind": stage.kind,
        "weights_from_outside": stage.start.name if stage.start else "",
        "method": stage.method,
        "variant": stage.variant,
        "task": stage.task,
        "seed": stage.seed,
        "state": run.state,
        "error": run.error,
        "steps": run.results.get("steps"),
        "seconds": run.results.get("seconds"),
        "environment": number,
    }


def _facts(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What of an environment bears on numbers and speed; neither times nor names of machines and folders."""
    git, names = environment.get("git") or {}, ("bench", "python", "packages", "cpu", "cores", "devices")
    facts = {name: environment[name] for name in names if environment.get(name)}
    return {"commit": git.get("commit"), "dirty": git.get("dirty"), **facts} if facts or git else {}


def environment_line(facts: Mapping[str, Any]) -> str:
    """One environment in words."""
    commit = f"commit {str(facts['commit'])[:12]}" if facts.get("commit") else "no commit recorded"
    changed = " with uncommitted changes" if facts.get("dirty") else ""
    packages = ", ".join(f"{name} {version}" for name, version in sorted(facts.get("packages", {}).items()))
    devices = [str(name) for name in facts.get("devices", [])]
    gpus = [f"{devices.count(name)} x {name}" for name in dict.fromkeys(devices)]
    machine = ", ".join([*gpus, f"{facts.get('cpu') or 'unknown CPU'} ({facts.get('cores', '?')} cores)"])
    return escaped(
        f"bench {facts.get('bench', '?')}, {commit}{changed}; Python {facts.get('python', '?')}; {packages}; {machine}",
        600,
    )


def stage_rows(sources: Provenance) -> list[dict[str, str]]:
    """The stages as text, for a table."""
    return [
        {
            "folder": f"`{row['folder']}`",
            "stage": row["kind"] + (f" from {escaped(start)}" if (start := row["weights_from_outside"]) else ""),
            "method": escaped(_method(row)),
            "task": escaped(row["task"]),
            "seed": str(row["seed"]),
            "state": row["state"] if row["state"] == "done" else f"**{row['state']}**",
            "steps": NO_VALUE if row["steps"] is None else str(row["steps"]),
            "seconds": NO_VALUE if row["seconds"] is None else amount(float(row["seconds"])),
            "environment": NO_VALUE if row["environment"] is None
            else f"[{row['environment']}](#environment-{row['environment']})",
            "starts": str(row["starts"]),
        }
        for row in sources.stages
    ]  # fmt: skip


def data_rows(sources: Provenance) -> list[dict[str, str]]:
    """The data as text, for a table."""
    return [
        {
            "data": escaped(f"{row['dataset']}/{row['split']}"),
            "images": f"{row['images']:,}",
            "manifest": f"`{row['manifest'][:12]}`" if row["manifest"] else NO_VALUE,
            "labels": escaped(row["labels"]) or "all",
            "left out": escaped(row["shortfall"], LONGEST_ERROR) or "none",
            "used by": escaped(", ".join(row["roles"]), LONGEST_ERROR),
        }
        for row in sources.data
    ]


def attempt_rows(sources: Provenance) -> list[dict[str, str]]:
    """The attempts as text, for a table."""
    return [
        {
            "folder": f"`{row['folder']}`",
            "start": str(row["start"]),
            "ended": row["ended"] if row["ended"] == "done" else f"**{row['ended']}**",
            "device": escaped(row["device"]) or NO_VALUE,
            "processes": NO_VALUE if row["processes"] is None else str(row["processes"]),
            "error": escaped(row["error"], LONGEST_ERROR) or NO_VALUE,
        }
        for row in sources.attempts
    ]


def other_rows(sources: Provenance) -> list[dict[str, str]]:
    """The runs outside the study as text, for a table."""
    return [
        {
            "folder": f"`{row['folder']}`", "stage": escaped(str(row["kind"])), "method": escaped(_method(row)),
            "task": escaped(str(row["task"])), "seed": str(row["seed"]), "state": row["state"],
        }
        for row in sources.others
    ]  # fmt: skip


def _method(row: Mapping[str, Any]) -> str:
    return f"{row['method']}:{row['variant']}" if row["variant"] else str(row["method"])
