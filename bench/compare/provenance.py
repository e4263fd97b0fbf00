"""Where the numbers come from: every stage of the plan with its state, folder and what it was computed with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from bench.compare.outcomes import Held, Outcomes, environment
from bench.compare.text import NO_VALUE, amount, escaped


class Provenance(NamedTuple):
    """Different environments, numbered from 1 in the order of the plan, and a row for every stage."""

    environments: tuple[dict[str, Any], ...]
    stages: tuple[dict[str, Any], ...]


def provenance(outcomes: Outcomes) -> Provenance:
    """The facts of all planned stages, also of those that failed or never ran."""
    environments: list[dict[str, Any]] = []
    stages = []
    for held in outcomes.stages.values():
        facts = _facts(environment(held))
        if facts and facts not in environments:
            environments.append(facts)
        stages.append(_stage(held, environments.index(facts) + 1 if facts else None))
    return Provenance(tuple(environments), tuple(stages))


def _stage(held: Held, number: int | None) -> dict[str, Any]:
    stage = held.stage
    return {
        "folder": stage.folder,
        "key": held.key,
        "kind": stage.kind,
        "method": stage.method,
        "variant": stage.variant,
        "task": stage.task,
        "seed": stage.seed,
        "state": held.state,
        "error": held.error,
        "steps": held.results.get("steps"),
        "seconds": held.results.get("seconds"),
        "environment": number,
    }


def _facts(found: Mapping[str, Any]) -> dict[str, Any]:
    """What of an environment bears on numbers and speed; neither times nor names of machines and folders."""
    git = found.get("git") or {}
    kept = {name: found[name] for name in ("bench", "python", "packages", "cpu", "cores", "devices") if found.get(name)}
    return {"commit": git.get("commit"), "dirty": git.get("dirty"), **kept} if kept or git else {}


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


def stage_rows(found: Provenance) -> list[dict[str, str]]:
    """The stages for people."""
    return [
        {
            "folder": f"`{row['folder']}`",
            "stage": row["kind"],
            "method": escaped(f"{row['method']}:{row['variant']}" if row["variant"] else row["method"]),
            "task": escaped(row["task"]),
            "seed": str(row["seed"]),
            "state": row["state"] if row["state"] == "done" else f"**{row['state']}**",
            "steps": NO_VALUE if row["steps"] is None else str(row["steps"]),
            "seconds": NO_VALUE if row["seconds"] is None else amount(float(row["seconds"])),
            "environment": NO_VALUE if row["environment"] is None else str(row["environment"]),
        }
        for row in found.stages
    ]
