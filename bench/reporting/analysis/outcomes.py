"""What the stages of a plan left on disk: states, costs, and per-image results of every arm and seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.config.stage import Plan, PlannedArm, Stage
from bench.errors import BenchError
from bench.files import read_json
from bench.reporting.analysis import predictions
from bench.runs.run import FORMAT, Record, Run
from bench.stats import bootstrap
from bench.stats.bootstrap import Counts

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

    def records(self) -> list[Record]:
        """What was measured on the way; nothing of a damaged run, which the report names."""
        return [] if self.state == "damaged" else self.run.records()

    def number(self, fact: str) -> float:
        """A number from the results; not-a-number when the stage has none."""
        value = self.results.get(fact)
        return float(value) if isinstance(value, int | float) else float("nan")


class SeedResult(NamedTuple):
    """One seed of an arm, scored. `ids` name the images of `hits` and `totals` (N, C), sorted.

    labels, confidence (highest probability, in [0, 1]), measures (right answers by name of the score): (N,) each;
    classes: names, where the evaluation states scores by class.
    """

    seed: int
    metrics: dict[str, float]
    ids: tuple[str, ...]
    hits: np.ndarray
    totals: np.ndarray
    labels: np.ndarray | None = None
    confidence: np.ndarray | None = None
    measures: dict[str, np.ndarray] = {}  # noqa: RUF012 - never written to
    classes: tuple[str, ...] = ()


class ScoredArm(NamedTuple):
    """An arm and the seeds of it that are finished, in the order of the plan."""

    planned: PlannedArm
    seeds: tuple[SeedResult, ...]

    def counts(self) -> Counts:
        """Per-image results of all finished seeds (S, N, C)."""
        return Counts(np.stack([s.hits for s in self.seeds]), np.stack([s.totals for s in self.seeds]))

    @property
    def is_right_or_wrong(self) -> bool:
        """Whether an image counts once, as right or as wrong: accuracy, not areas."""
        return all(s.hits.shape[1] == 1 and bool((s.totals == 1).all()) for s in self.seeds)

    def measured(self, name: str) -> ScoredArm | None:
        """The arm by another score of the same images; None when one of its seeds has none."""
        if not self.seeds or any(name not in one.measures for one in self.seeds):
            return None
        return self._replace(seeds=tuple(one._replace(hits=one.measures[name][:, None]) for one in self.seeds))


def label_of(arm: PlannedArm) -> str:
    """What an arm is called in reports."""
    return arm.label or arm.id


class Outcomes:
    """A plan with all that its runs say. Nothing is written and no folder is made by reading it."""

    def __init__(self, plan: Plan, results: Path) -> None:
        self.plan, self.results = plan, results
        self.stages = {key: _held(key, stage, results) for key, stage in plan.stages.items()}
        self._places = {key: place for place, key in enumerate(plan.stages)}
        self.problems: list[str] = []
        self._images: dict[str, tuple[str, ...]] = {}
        self.arms = {arm.id: ScoredArm(arm, tuple(self._seeds(arm))) for arm in plan.arms}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks in the order in which the arms name them."""
        return tuple(dict.fromkeys(arm.task for arm in self.plan.arms))

    def of_task(self, task: str) -> list[ScoredArm]:
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
        """The stage that learned the task: the one that the evaluation scores; for weights from outside, itself."""
        return self.stages[self._own(arm, seed)]

    def _own(self, arm: PlannedArm, seed: int) -> str:
        scoring = arm.stages[seed]["evaluate"]
        return self.plan.stages[scoring].parents.get("model", scoring)

    def start(self, arm: PlannedArm, seed: int) -> str:
        """Key of the training with which the backbone began, or digest of its weights: what seeds have in common."""
        key = self._own(arm, seed)
        while "start" in self.plan.stages[key].parents:
            key = self.plan.stages[key].parents["start"]
        outside = self.plan.stages[key].start
        return outside.digest if outside else key

    def outside(self, arm: PlannedArm) -> str:
        """The weights from outside that an arm goes back to, '' for none; what their training took is unknown."""
        chains = ([self.own(arm, seed), *self.upstream(arm, seed)] for seed in arm.stages)
        found = [held.stage.start for chain in chains for held in chain if held.stage.start]
        return found[0].name if found else ""

    def upstream(self, arm: PlannedArm, seed: int) -> list[Held]:
        """All stages that had to run before: pretraining, tokenizer, teacher. In the order of the plan."""
        needed: set[str] = set()
        open_keys = list(self.own(arm, seed).stage.parents.values())
        while open_keys:
            key = open_keys.pop()
            if key not in needed:
                needed.add(key)
                open_keys.extend(self.plan.stages[key].parents.values())
        return [self.stages[key] for key in sorted(needed, key=self._places.__getitem__)]

    def _seeds(self, arm: PlannedArm) -> Iterable[SeedResult]:
        for seed, keys in sorted(arm.stages.items()):
            held = self.stages[keys["evaluate"]]
            if held.state != "done":
                continue
            try:
                yield self._same_images(arm.task, _outcome(held, self.own(arm, seed), arm.metric, seed))
            except BenchError as error:
                self.problems.append(f"{held.name} is left out: {error} [{held.stage.folder}]")

    def _same_images(self, task: str, outcome: SeedResult) -> SeedResult:
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
    run = Run(results / "runs" / f"{stage.kind}-{key[:12]}")  # the plan's key, as the version that wrote it counts
    try:
        state, error = _state(run, key)
        found = run.results() if state == "done" and run.path("results.json").exists() else {}
        run.records()  # a line that cannot be read would otherwise end the report of all other stages
    except BenchError as problem:
        state, error, found = "damaged", str(problem), {}
    return Held(key, stage, run, state, _shown(error, results), found)


def _state(run: Run, key: str) -> tuple[str, str]:
    if not run.path("stage.json").exists():
        return "pending", ""
    stored = read_json(run.path("stage.json"))
    if (stored.get("key"), stored.get("format")) != (key, FORMAT):
        return "damaged", f"the folder holds another stage ({run.stage().key})"
    status = run.status()
    if status.state == "done" and not run.is_done():
        return "damaged", "an output file is missing or has another size than when it was written"
    return status.state, status.error


def _shown(error: str, results: Path) -> str:
    """First line of an error, without the machine's path to the results."""
    first = error.strip().splitlines()[0] if error.strip() else ""
    return first.replace(f"{results}/", "")


def _metrics(held: Held) -> dict[str, float]:
    return {str(k): float(v) for k, v in held.results.get("metrics", {}).items() if isinstance(v, int | float)}


def _outcome(held: Held, own: Held, metric: str, seed: int) -> SeedResult:
    """Scores and per-image results of a finished evaluation of `own`; BenchError when they contradict each other."""
    metrics = _metrics(held)
    if metric not in metrics:
        raise BenchError(f"its results.json has no {metric!r} (it has {', '.join(sorted(metrics)) or 'nothing'})")
    found = predictions.read(held.run.path("predictions.parquet"), metric)
    score = float(bootstrap.mean_ratio(found.hits.sum(0), found.totals.sum(0)))
    if abs(score - metrics[metric]) > AGREEMENT:
        raise BenchError(f"results.json says {metric} {metrics[metric]:.2f}, its predictions give {score:.2f}")
    measures = found.measures | predictions.neighbours(own.run.path("neighbours.parquet"), found.ids)
    metrics |= {name: value for name, value in _metrics(own).items() if name in measures}
    classes = tuple(str(name) for name in held.results.get("per_class") or ())
    return SeedResult(seed, metrics, found.ids, found.hits, found.totals, found.labels, found.confidence,
                   _told(measures, metrics), classes)  # fmt: skip


def _told(measures: Mapping[str, np.ndarray], metrics: Mapping[str, float]) -> dict[str, np.ndarray]:
    """The further measures of which the evaluation states the same score."""
    return {name: right for name, right in measures.items()
            if abs(100 * right.mean() - metrics.get(name, np.nan)) <= AGREEMENT}  # fmt: skip


def environment(held: Held) -> dict[str, Any]:
    """What the stage was computed with, or {} when it did not say."""
    path = held.run.path("environment.json")
    try:
        return dict(read_json(path)) if path.exists() else {}
    except BenchError:
        return {}
