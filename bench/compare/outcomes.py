"""What the stages of a plan left on disk: states, costs, and per-image results of every arm and seed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.compare import statistics
from bench.compare.statistics import Counts
from bench.spec import BenchError, Plan, PlannedArm, Stage
from bench.store import Run, read_json

AGREEMENT = 0.01  # points by which the stored score may differ from the one its predictions give


class Held(NamedTuple):
    """A planned stage and what is known of it. `state` is a run's state, or 'damaged'."""

    key: str
    stage: Stage
    run: Run
    state: str
    error: str
    results: dict[str, Any]

    @property
    def name(self) -> str:
        """How a reader calls it: 'beit pretrain (seed 0)'."""
        who = f"{self.stage.method}:{self.stage.variant}" if self.stage.variant else self.stage.method
        return f"{who} {self.stage.kind} (seed {self.stage.seed})"

    def number(self, fact: str) -> float:
        """A number from the results; not-a-number when the stage has none."""
        value = self.results.get(fact)
        return float(value) if isinstance(value, int | float) else float("nan")


class Outcome(NamedTuple):
    """One seed of an arm, scored. `ids` name the images of `hits` and `totals` (N, C), sorted."""

    seed: int
    metrics: dict[str, float]
    ids: tuple[str, ...]
    hits: np.ndarray
    totals: np.ndarray


class Arm(NamedTuple):
    """An arm and the seeds of it that are finished, in the order of the plan."""

    planned: PlannedArm
    seeds: tuple[Outcome, ...]

    def counts(self) -> Counts:
        """Per-image results of all finished seeds (S, N, C)."""
        return Counts(np.stack([s.hits for s in self.seeds]), np.stack([s.totals for s in self.seeds]))


class Outcomes:
    """A plan with all that its runs say. Nothing is written and no folder is made by reading it."""

    def __init__(self, plan: Plan, results: Path) -> None:
        self.plan = plan
        self.stages = {key: _held(key, stage, results) for key, stage in plan.stages.items()}
        self.problems: list[str] = []
        self._images: dict[str, tuple[str, ...]] = {}
        self.arms = {arm.id: Arm(arm, tuple(self._seeds(arm))) for arm in plan.arms}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks in the order in which the arms name them."""
        return tuple(dict.fromkeys(arm.task for arm in self.plan.arms))

    def of_task(self, task: str) -> list[Arm]:
        """Arms of a task, also those without a finished seed."""
        return [arm for arm in self.arms.values() if arm.planned.task == task]

    @property
    def missing(self) -> tuple[str, ...]:
        """Every stage that is not done, with its state, and every file that could not be used."""
        unfinished = [
            f"{held.name} is {held.state}" + (f": {held.error}" if held.error else "") + f" [{held.stage.folder}]"
            for held in self.stages.values()
            if held.state != "done"
        ]
        return (*unfinished, *self.problems)

    def own(self, arm: PlannedArm, seed: int) -> Held:
        """The stage that learned the task: the one that the evaluation scores."""
        return self.stages[self.plan.stages[arm.stages[seed]["evaluate"]].parents["model"]]

    def upstream(self, arm: PlannedArm, seed: int) -> list[Held]:
        """All stages that had to run before: pretraining, tokenizer, teacher. In the order of the plan."""
        needed: set[str] = set()
        open_keys = list(self.own(arm, seed).stage.parents.values())
        while open_keys:
            key = open_keys.pop()
            if key not in needed:
                needed.add(key)
                open_keys.extend(self.plan.stages[key].parents.values())
        return [held for key, held in self.stages.items() if key in needed]

    def _seeds(self, arm: PlannedArm) -> Iterable[Outcome]:
        for seed, keys in sorted(arm.stages.items()):
            held = self.stages[keys["evaluate"]]
            if held.state != "done":
                continue
            try:
                yield self._same_images(arm.task, _outcome(held, arm.metric, seed))
            except BenchError as error:
                self.problems.append(f"{held.name} is left out: {error} [{held.stage.folder}]")

    def _same_images(self, task: str, outcome: Outcome) -> Outcome:
        """`outcome`, if it was scored on the images of the first one of this task."""
        expected = self._images.setdefault(task, outcome.ids)
        if outcome.ids != expected:
            extra, lacking = set(outcome.ids) - set(expected), set(expected) - set(outcome.ids)
            raise BenchError(
                f"scored on {len(outcome.ids)} images where the first arm of {task!r} was scored on {len(expected)} "
                f"({len(extra)} others, {len(lacking)} lacking); a difference between them would mean nothing"
            )
        return outcome


def _held(key: str, stage: Stage, results: Path) -> Held:
    run = Run(results / "runs" / stage.folder)
    try:
        state, error = _state(run, key)
        found = run.results() if state == "done" and run.path("results.json").exists() else {}
    except BenchError as problem:
        state, error, found = "damaged", str(problem), {}
    return Held(key, stage, run, state, _shown(error, results), found)


def _state(run: Run, key: str) -> tuple[str, str]:
    if not run.path("stage.json").exists():
        return "pending", ""
    if run.stage().key != key:
        return "damaged", f"the folder holds another stage ({run.stage().key})"
    status = run.status()
    if status.state == "done" and not run.is_done():
        return "damaged", "an output file is missing or has another size than when it was written"
    return status.state, status.error


def _shown(error: str, results: Path) -> str:
    """First line of an error, without the machine's path to the results."""
    first = error.strip().splitlines()[0] if error.strip() else ""
    return first.replace(f"{results}/", "")


def _outcome(held: Held, metric: str, seed: int) -> Outcome:
    """Scores and per-image results of a finished evaluation; BenchError when they contradict each other."""
    metrics = {str(k): float(v) for k, v in held.results.get("metrics", {}).items() if isinstance(v, int | float)}
    if metric not in metrics:
        raise BenchError(f"its results.json has no {metric!r} (it has {', '.join(sorted(metrics)) or 'nothing'})")
    ids, hits, totals = _predictions(held.run.path("predictions.parquet"), metric)
    score = float(statistics.mean_ratio(hits.sum(0), totals.sum(0)))
    if abs(score - metrics[metric]) > AGREEMENT:
        raise BenchError(f"results.json says {metric} {metrics[metric]:.2f}, its predictions give {score:.2f}")
    return Outcome(seed, metrics, ids, hits, totals)


def _predictions(path: Path, metric: str) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Image ids, hits (N, C) and totals (N, C), sorted by id."""
    columns = ["correct"] if metric == "top1" else ["intersect", "union"]
    try:
        frame = pd.read_parquet(path, columns=["id", *columns])
    except (OSError, ValueError, KeyError) as error:
        raise BenchError(f"{path.name} cannot be read: {type(error).__name__}") from None
    frame = frame.assign(id=frame["id"].astype(str)).sort_values("id", kind="stable")
    if frame.empty or frame["id"].duplicated().any():
        raise BenchError(f"{path.name} holds no image, or one image twice")
    first, last = frame[columns[0]], frame[columns[-1]]
    if metric == "top1":
        hits = first.to_numpy(dtype=np.float64)[:, None]
        return tuple(frame["id"]), hits, np.ones_like(hits)
    return tuple(frame["id"]), np.stack(first.to_list()).astype(np.float64), np.stack(last.to_list()).astype(np.float64)


def environment(held: Held) -> dict[str, Any]:
    """What the stage was computed with, or {} when it did not say."""
    path = held.run.path("environment.json")
    try:
        return dict(read_json(path)) if path.exists() else {}
    except BenchError:
        return {}
