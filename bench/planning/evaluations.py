"""Plan evaluations of trained weights on a task: any checkpoint, or a run.

The evaluation is an ordinary stage, whose key hashes the weights, the data and the protocol. So it runs once, resumes
after a stop, and is compared like the evaluations of a study.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.checkpoints.locate import LocatedWeights, locate
from bench.config.registry import Places, read_task, task_files
from bench.config.schema import Arm, Model, Protocol, Study, Task
from bench.config.stage import Data, Plan, PlannedArm, Stage, Start
from bench.data import splits
from bench.data.splits import SplitRequest
from bench.errors import BenchError, parse
from bench.planning.start_from import probe_weights
from bench.runs.run import Run
from bench.runs.store import RUNS

if TYPE_CHECKING:
    from bench.checkpoints.conversion import ConvertedCheckpoint

METHOD = "checkpoint"  # of pretrained weights, whatever they were trained by
PREPROCESSING = ("mean", "std", "resolution", "crop_ratio", "interpolation", "whole")  # of a protocol, as in a card
PURPOSES = {"classification": "classify", "segmentation": "segment"}


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """Which weights to evaluate, on which data."""

    sources: tuple[str, ...]  # of the weights: a file, a folder, a run, a hub id, timm:NAME
    task: str
    places: Places
    protocol: Literal["task", "card"] = "task"  # card: preprocess as the weights' model card says
    precision: str = "fp32"
    partial: bool = False  # ignore weights that the network has no place for
    roots: Mapping[str, str] = field(default_factory=dict)  # task -> folder of its data; '': of every task
    limit: float | None = None
    max_unreadable: int = 0
    allow_incomplete: bool = False
    output: Path = Path("results")
    name: str = ""  # of the comparison


def plan_evaluations(request: EvaluationRequest) -> Plan:
    """One evaluation for each of the weights. BenchError for weights that cannot be scored on this task."""
    task = read_task(request.task, request.places)
    data = _data(task, request)
    arms: dict[str, PlannedArm] = {}
    stages: dict[str, Stage] = {}
    for source in request.sources:
        before, stage = _stage(source, task, data, request)
        if stage.key in stages:
            raise BenchError(f"{source} holds the same weights as {arms[stage.key].label}")
        stages |= {each.key: each for each in (*before, stage)}
        arms[stage.key] = _arm(source, stage, task, before)
    name = request.name or f"evaluate-{task.name}"
    written = tuple(Arm(method=arm.method, label=arm.label) for arm in arms.values())
    study = Study(name=name, title=f"Checkpoints on {task.title or task.name}", tasks=(task.name,), arms=written)
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


def _data(task: Task, request: EvaluationRequest) -> Data:
    """Describe the split that a task is scored on."""
    if "val" not in task.splits:
        raise BenchError(f"task {task.name} has no split val to score on")
    options = dict(task.options)
    if request.max_unreadable:
        options["max_unreadable"] = request.max_unreadable
    split = SplitRequest(
        task.dataset,
        task.splits["val"],
        request.roots.get(task.name) or request.roots.get("") or request.roots.get(task.evaluates) or None,
        options,
        request.limit,
        expected=task.expects.get(task.splits["val"]),
        allow_incomplete=request.allow_incomplete,
    )
    return splits.describe(split)


def _stage(source: str, task: Task, data: Data, request: EvaluationRequest) -> tuple[tuple[Stage, ...], Stage]:
    """The stages before it, and the evaluation; of a run in this output folder, as `bench run` plans it."""
    weights = locate(source, request.output)
    if weights.is_run and request.protocol == "card":
        raise BenchError(f"{source} is a run of bench, which has no card: it is scored by the task's protocol")
    if weights.is_run and weights.path.resolve().parent == (request.output / RUNS).resolve():
        return _of_run(weights, task, data, request)
    from bench.checkpoints import conversion

    checkpoint = conversion.read(source if weights.revision else weights.path, partial=request.partial)
    _check_purpose(source, checkpoint.purpose, checkpoint.model, task, data)
    protocol = task.protocol if request.protocol == "task" else _card_protocol(source, checkpoint, task)
    _check_resolution(source, checkpoint.model, protocol, task, request)
    options: dict[str, Any] = {"precision": request.precision} | ({"partial": True} if request.partial else {})
    start: Start = probe_weights(source, request.output)
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


def _of_run(
    weights: LocatedWeights, task: Task, data: Data, request: EvaluationRequest
) -> tuple[tuple[Stage, ...], Stage]:
    """The evaluation that `bench run` plans after this training, and the training."""
    trained = Run(weights.path).stage()
    purpose = "segment" if trained.model.decoder else "classify" if trained.model.classes else "pretrain"
    _check_purpose(weights.id, purpose, trained.model, task, data)
    _check_resolution(weights.id, trained.model, task.protocol, task, request)
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


def _check_purpose(source: str, purpose: str, model: Model, task: Task, data: Data) -> None:
    """Raise BenchError for weights that were trained for another purpose, or for other classes, than the task's."""
    if purpose == "pretrain":
        raise BenchError(
            f"{source} was pretrained without labels, so there is nothing to score; fine-tune it first: "
            f"bench run --method beit --task {task.name} --set finetune.start_from={source}"
        )
    if purpose != PURPOSES[task.kind]:
        raise BenchError(f"{source} was trained to {purpose}, task {task.name} is {task.kind}")
    classes = task.classes or _count_classes(data)
    if model.classes != classes:
        raise BenchError(f"{source} has {model.classes:,} classes, task {task.name} has {classes:,}")


def _count_classes(data: Data) -> int:
    return len(splits.open_source(SplitRequest(data.dataset, data.split, data.root, data.options)).classes)


def _card_protocol(source: str, checkpoint: ConvertedCheckpoint, task: Task) -> Protocol:
    """The task's protocol with the preprocessing of the weights' model card."""
    card = {name: checkpoint.preprocessing[name] for name in PREPROCESSING if name in checkpoint.preprocessing}
    if not card:
        raise BenchError(f"{source} does not state its preprocessing; leave out --protocol card")
    values = task.protocol.model_dump(mode="json") | {"resolution": checkpoint.model.image_size} | card
    if values["whole"]:
        values |= {"stride": 0, "scales": (1.0,)}  # a protocol with whole = true refuses others
    return parse(Protocol, values, f"the card of {source}")


def _check_resolution(source: str, model: Model, protocol: Protocol, task: Task, request: EvaluationRequest) -> None:
    if model.image_size == protocol.resolution:
        return
    others = (read_task(name, request.places) for name in task_files(request.places))
    names = [
        other.name
        for other in others
        if (other.dataset, other.kind) == (task.dataset, task.kind) and other.protocol.resolution == model.image_size
    ]
    hint = f"task {' or '.join(names)} does" if names else "write a task that does, or take --protocol card"
    raise BenchError(
        f"{source} takes images of {model.image_size} pixels, the protocol has {protocol.resolution}; {hint}"
    )
