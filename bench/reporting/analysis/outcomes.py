"""Run outputs of a plan, as the report reads them: states, costs, and per-image results of every arm and seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.config.stage import Plan, PlannedArm, Stage
from bench.errors import BenchError
from bench.files import read_json
from bench.reporting.analysis import predictions
from bench.runs.run import FORMAT, Record, Run
from bench.stats import bootstrap
from bench.stats.bootstrap import Counts

SCORE_TOLERANCE = 0.01  # points by which a stored score may differ from the one its predictions give


@dataclass(frozen=True, slots=True)
class StageRun:
    """The stored run of a planned stage. `state` is the run's, or 'damaged'; `results` are {} until it is done."""

    key: str
    stage: Stage
    run: Run
    state: str
    error: str
    results: dict[str, Any]

    @property
    def name(self) -> str:
        """What a reader calls it: 'beit pretrain (seed 0)'."""
        method = f"{self.stage.method}:{self.stage.variant}" if self.stage.variant else self.stage.method
        return f"{method} {self.stage.kind} (seed {self.stage.seed})"

    def records(self) -> list[Record]:
        """Metrics recorded during the stage; none of a damaged run, which the report names."""
        return [] if self.state == "damaged" else self.run.records()

    def number(self, fact: str) -> float:
        """A number from the results; not-a-number when the stage has none."""
        value = self.results.get(fact)
        return float(value) if isinstance(value, int | float) else float("nan")


@dataclass(frozen=True, slots=True)
class SeedResult:
    """The evaluation of one seed of an arm. `ids` name the images of `hits` and `totals` (N, C), sorted.

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
    measures: dict[str, np.ndarray] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoredArm:
    """An arm and its finished seeds, in the order of the plan."""

    planned: PlannedArm
    seeds: tuple[SeedResult, ...]

    def counts(self) -> Counts:
        """Per-image results of all finished seeds (S, N, C)."""
        return Counts(np.stack([s.hits for s in self.seeds]), np.stack([s.totals for s in self.seeds]))

    @property
    def is_right_or_wrong(self) -> bool:
        """Whether an image counts once, as right or as wrong: accuracy, not areas."""
        return all(s.hits.shape[1] == 1 and bool((s.totals == 1).all()) for s in self.seeds)

    def with_measure(self, name: str) -> ScoredArm | None:
        """The arm scored by another measure of the same images; None when one of its seeds has none."""
        if not self.seeds or any(name not in result.measures for result in self.seeds):
            return None
        seeds = tuple(replace(result, hits=result.measures[name][:, None]) for result in self.seeds)
        return replace(self, seeds=seeds)


def label_of(arm: PlannedArm) -> str:
    """What an arm is called in reports."""
    return arm.label or arm.id


class Outcomes:
    """A plan with the run outputs of all its stages. Reading it writes nothing and makes no folder."""

    def __init__(self, plan: Plan, results: Path) -> None:
        self.plan, self.results = plan, results
        self.stages = {key: _read_stage(key, stage, results) for key, stage in plan.stages.items()}
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
            f"{run.name} is {run.state}" + (f": {run.error}" if run.error else "") + f" [{run.stage.folder}]"
            for run in self.stages.values()
            if run.state != "done"
        ]
        return (*unfinished, *self.problems)

    def last_stage(self, arm: PlannedArm, seed: int) -> StageRun:
        """The last training stage, whose model the evaluation scores; without one (pretrained weights), itself."""
        return self.stages[self._last_key(arm, seed)]

    def _last_key(self, arm: PlannedArm, seed: int) -> str:
        scoring = arm.stages[seed]["evaluate"]
        return self.plan.stages[scoring].parents.get("model", scoring)

    def pretraining_of(self, arm: PlannedArm, seed: int) -> str:
        """The training that the backbone starts from: key of its stage, or digest of its pretrained weights.

        Seeds with the same one are not independent.
        """
        key = self._last_key(arm, seed)
        while "start" in self.plan.stages[key].parents:
            key = self.plan.stages[key].parents["start"]
        weights = self.plan.stages[key].start
        return weights.digest if weights else key

    def pretrained_weights(self, arm: PlannedArm) -> str:
        """Name of the pretrained weights that an arm goes back to, '' for none; what they cost is unknown."""
        chains = ([self.last_stage(arm, seed), *self.upstream(arm, seed)] for seed in arm.stages)
        starts = [run.stage.start for chain in chains for run in chain if run.stage.start]
        return starts[0].name if starts else ""

    def upstream(self, arm: PlannedArm, seed: int) -> list[StageRun]:
        """All stages that had to run before the last: pretraining, tokenizer, teacher. In the order of the plan."""
        needed: set[str] = set()
        open_keys = list(self.last_stage(arm, seed).stage.parents.values())
        while open_keys:
            key = open_keys.pop()
            if key not in needed:
                needed.add(key)
                open_keys.extend(self.plan.stages[key].parents.values())
        return [self.stages[key] for key in sorted(needed, key=self._places.__getitem__)]

    def _seeds(self, arm: PlannedArm) -> Iterable[SeedResult]:
        for seed, keys in sorted(arm.stages.items()):
            scoring = self.stages[keys["evaluate"]]
            if scoring.state != "done":
                continue
            try:
                result = _seed_result(scoring, self.last_stage(arm, seed), arm.metric, seed)
                self._check_images(arm.task, result)
            except BenchError as error:
                self.problems.append(f"{scoring.name} is left out: {error} [{scoring.stage.folder}]")
            else:
                yield result

    def _check_images(self, task: str, result: SeedResult) -> None:
        """Raise BenchError unless `result` was scored on the same images as the first one of its task."""
        expected = self._images.setdefault(task, result.ids)
        if result.ids != expected:
            extra, lacking = set(result.ids) - set(expected), set(expected) - set(result.ids)
            raise BenchError(
                f"scored on {len(result.ids)} images where the first arm of {task!r} was scored on {len(expected)} "
                f"({len(extra)} others, {len(lacking)} lacking); a difference between them would mean nothing"
            )


def _read_stage(key: str, stage: Stage, results: Path) -> StageRun:
    run = Run(results / "runs" / f"{stage.kind}-{key[:12]}")  # the plan's key, as the version that wrote it counts
    try:
        state, error = _state(run, key)
        outputs = run.results() if state == "done" and run.path("results.json").exists() else {}
        run.records()  # a line that cannot be read would otherwise end the report of all other stages
    except BenchError as problem:
        state, error, outputs = "damaged", str(problem), {}
    return StageRun(key, stage, run, state, _first_line(error, results), outputs)


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


def _first_line(error: str, results: Path) -> str:
    """First line of an error, without the machine's path to the results."""
    first = error.strip().splitlines()[0] if error.strip() else ""
    return first.replace(f"{results}/", "")  # the same runs give the same report wherever they lie


def _metrics(run: StageRun) -> dict[str, float]:
    return {str(k): float(v) for k, v in run.results.get("metrics", {}).items() if isinstance(v, int | float)}


def _seed_result(scoring: StageRun, last: StageRun, metric: str, seed: int) -> SeedResult:
    """Scores and per-image results of a finished evaluation of `last`; BenchError when they contradict each other."""
    metrics = _metrics(scoring)
    if metric not in metrics:
        raise BenchError(f"its results.json has no {metric!r} (it has {', '.join(sorted(metrics)) or 'nothing'})")
    images = predictions.read(scoring.run.path("predictions.parquet"), metric)
    score = float(bootstrap.mean_ratio(images.hits.sum(0), images.totals.sum(0)))
    if abs(score - metrics[metric]) > SCORE_TOLERANCE:
        raise BenchError(f"results.json says {metric} {metrics[metric]:.2f}, its predictions give {score:.2f}")
    measures = images.measures | predictions.neighbours(last.run.path("neighbours.parquet"), images.ids)
    # a probe's nearest neighbours are scored in its own stage, so their score stands in the results of that one
    metrics |= {name: value for name, value in _metrics(last).items() if name in measures}
    classes = tuple(str(name) for name in scoring.results.get("per_class") or ())
    return SeedResult(seed, metrics, images.ids, images.hits, images.totals, images.labels, images.confidence,
                      _consistent(measures, metrics), classes)  # fmt: skip


def _consistent(measures: Mapping[str, np.ndarray], metrics: Mapping[str, float]) -> dict[str, np.ndarray]:
    """The further measures for which the evaluation states the same score."""
    return {name: right for name, right in measures.items()
            if abs(100 * right.mean() - metrics.get(name, np.nan)) <= SCORE_TOLERANCE}  # fmt: skip


def environment(stage_run: StageRun) -> dict[str, Any]:
    """What the stage was computed with, or {} when it did not say."""
    path = stage_run.run.path("environment.json")
    try:
        return dict(read_json(path)) if path.exists() else {}
    except BenchError:
        return {}
