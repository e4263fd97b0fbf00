"""Scoring weights that are there already: a checkpoint of anybody's, or a run of ours, on a task.

It is an ordinary stage: its folder is named by what the weights are, the data and the protocol, so that it is done
once, goes on after a stop, and stands beside the evaluations of a study.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bench.checkpoints.locate import LocatedWeights, locate
from bench.config.registry import Places, read_task, task_files
from bench.config.schema import Arm, Model, Protocol, Study, Task
from bench.config.stage import Data, Plan, PlannedArm, Stage, Start
from bench.data import splits
from bench.data.source import Source
from bench.data.splits import SplitRequest
from bench.errors import BenchError, parse
from bench.planning.start_from import probe_weights
from bench.runs.run import Run

if TYPE_CHECKING:
    from bench.checkpoints.conversion import ConvertedCheckpoint

METHOD = "checkpoint"  # of weights from outside, whatever they were trained by
GIVEN = ("mean", "std", "resolution", "crop_ratio", "interpolation", "whole")  # what a card says of preprocessing
PURPOSES = {"classification": "classify", "segmentation": "segment"}


class Asked(NamedTuple):
    """What is to be scored, on which data. `roots`: task -> folder, '' for every task."""

    sources: tuple[str, ...]
    task: str
    places: Places
    protocol: Literal["task", "card"] = "task"
    precision: str = "fp32"
    partial: bool = False
    roots: Mapping[str, str] = {}
    limit: float | None = None
    max_unreadable: int = 0
    allow_incomplete: bool = False
    output: Path = Path("results")
    name: str = ""  # of the comparison


def plan_evaluations(asked: Asked) -> Plan:
    """One evaluation for each of the weights. BenchError when they cannot be scored on this task, or not as asked."""
    task = read_task(asked.task, asked.places)
    data = _data(task, asked)
    arms: dict[str, PlannedArm] = {}
    stages: dict[str, Stage] = {}
    for source in asked.sources:
        before, stage = _stage(source, task, data, asked)
        if stage.key in stages:
            raise BenchError(f"{source} holds the same weights as {arms[stage.key].label}")
        stages |= {each.key: each for each in (*before, stage)}
        arms[stage.key] = _arm(source, stage, task, before)
    named = asked.name or f"evaluate-{task.name}"
    words = tuple(Arm(method=arm.method, label=arm.label) for arm in arms.values())
    study = Study(name=named, title=f"Checkpoints on {task.title or task.name}", tasks=(task.name,), arms=words)
    return Plan(study=study, arms=tuple(arms.values()), stages=stages)


def _arm(source: str, stage: Stage, task: Task, before: tuple[Stage, ...]) -> PlannedArm:
    keys: dict[str, str] = {each.kind: each.key for each in (*before, stage)}
    return PlannedArm(
        id=f"{source}/{task.name}",
        label=source,
        method=stage.method,
        variant=stage.variant,
        size=stage.model.size,
        task=task.name,
        budget="",
        metric=task.metric,
        fidelity="exact",
        stages={stage.seed: keys},
    )


def _data(task: Task, asked: Asked) -> Data:
    """The split that a task is scored on."""
    if "val" not in task.splits:
        raise BenchError(f"task {task.name} has no split val to score on")
    options = dict(task.options)
    if asked.max_unreadable:
        options["max_unreadable"] = asked.max_unreadable
    request = SplitRequest(
        task.dataset,
        task.splits["val"],
        asked.roots.get(task.name) or asked.roots.get("") or asked.roots.get(task.evaluates) or None,
        options,
        asked.limit,
        expected=task.expects.get(task.splits["val"]),
        allow_incomplete=asked.allow_incomplete,
    )
    return splits.describe(request)


def _stage(source: str, task: Task, data: Data, asked: Asked) -> tuple[tuple[Stage, ...], Stage]:
    """The stages before, and the evaluation: of a run of this folder as `bench run` plans it."""
    found = locate(source, asked.output)
    if found.is_run and asked.protocol == "card":
        raise BenchError(f"{source} is a run of bench, which has no card: it is scored by the task's protocol")
    if found.is_run and found.path.resolve().parent == (asked.output / "runs").resolve():
        return _of_run(found, task, data, asked)
    from bench.checkpoints import conversion

    checkpoint = conversion.read(source if found.revision else found.path, partial=asked.partial)
    _refuse_other(source, checkpoint.purpose, checkpoint.model, task, data)
    protocol = task.protocol if asked.protocol == "task" else _card(source, checkpoint, task)
    _refuse_size(source, checkpoint.model, protocol, task, asked)
    options: dict[str, Any] = {"precision": asked.precision} | ({"partial": True} if asked.partial else {})
    start: Start = probe_weights(source, asked.output)
    stage = Stage(
        kind="evaluate",
        method=METHOD,
        variant=start.name,
        task=task.name,
        model=checkpoint.model,
        options=options,
        protocol=protocol,
        data={"val": data},
        start=start,
    )
    return (), stage


def _of_run(found: LocatedWeights, task: Task, data: Data, asked: Asked) -> tuple[tuple[Stage, ...], Stage]:
    """The evaluation that `bench run` plans after this training."""
    trained = Run(found.path).stage()
    purpose = "segment" if trained.model.decoder else "classify" if trained.model.classes else "pretrain"
    _refuse_other(found.id, purpose, trained.model, task, data)
    _refuse_size(found.id, trained.model, task.protocol, task, asked)
    changes = {
        "kind": "evaluate",
        "recipe": None,
        "options": {},
        "parents": {"model": trained.key},
        "start": None,
        "data": {"val": data},
        "protocol": task.protocol,
        "task": task.name,
        "origins": {},
        "departures": {},
    }
    return (trained,), trained.model_copy(update=changes)


def _refuse_other(source: str, purpose: str, model: Model, task: Task, data: Data) -> None:
    """BenchError for weights that answer another question than the task asks."""
    if purpose == "pretrain":
        raise BenchError(
            f"{source} learned without labels, so there is nothing to score; fine-tune it first: "
            f"bench run --method beit --task {task.name} --set finetune.start_from={source}"
        )
    if purpose != PURPOSES[task.kind]:
        raise BenchError(f"{source} was trained to {purpose}, task {task.name} is {task.kind}")
    classes = task.classes or len(_opened(data).classes)
    if model.classes != classes:
        raise BenchError(f"{source} tells {model.classes:,} classes apart, task {task.name} has {classes:,}")


def _opened(data: Data) -> Source:
    return splits.open_source(SplitRequest(data.dataset, data.split, data.root, data.options))


def _card(source: str, checkpoint: ConvertedCheckpoint, task: Task) -> Protocol:
    """The task's protocol with the preprocessing that came with the weights."""
    said = {name: checkpoint.preprocessing[name] for name in GIVEN if name in checkpoint.preprocessing}
    if not said:
        raise BenchError(f"{source} says nothing of its preprocessing; leave out --protocol card")
    own = task.protocol.model_dump(mode="json") | {"resolution": checkpoint.model.image_size} | said
    if own["whole"]:
        own |= {"stride": 0, "scales": (1.0,)}
    return parse(Protocol, own, f"the card of {source}")


def _refuse_size(source: str, model: Model, protocol: Protocol, task: Task, asked: Asked) -> None:
    if model.image_size == protocol.resolution:
        return
    others = (read_task(name, asked.places) for name in task_files(asked.places))
    fit = [
        other.name
        for other in others
        if (other.dataset, other.kind) == (task.dataset, task.kind) and other.protocol.resolution == model.image_size
    ]
    hint = f"task {' or '.join(fit)} does" if fit else "write a task that does, or take --protocol card"
    raise BenchError(f"{source} reads {model.image_size} pixels, the protocol shows {protocol.resolution}; {hint}")
