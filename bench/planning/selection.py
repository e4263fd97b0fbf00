"""Selections of the command line and the Python API, as requests to the planner: study, size, data, values."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.config.overrides import from_environment
from bench.config.precedence import UserOverrides
from bench.config.registry import Places, places, read_study, study_files, task_files
from bench.config.schema import HUB, TRAINED, Arm, Study
from bench.errors import BenchError, unknown
from bench.planning.evaluations import EvaluationRequest
from bench.planning.request import Request
from bench.planning.toy import toy
from bench.runs.store import read_plan, studies

PRECISIONS = {"no": "fp32", "fp32": "fp32", "bf16": "bf16", "fp16": "fp16", "auto": "auto"}  # accelerate's, and ours


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSelection:
    """Where the data are, and which part of them is used."""

    data_dirs: Mapping[str, str] = field(default_factory=dict)  # task -> folder or hf:OWNER/NAME; '' for every task
    limit: float | None = None  # images per split, or a share up to 1; the result is not reportable
    max_unreadable: int = 0  # unreadable images that may be left out
    allow_incomplete: bool = False  # use a split that lacks images; the result is not reportable
    include: tuple[Path, ...] = ()  # folders with more tasks and studies


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySelection(DataSelection):
    """A study by name or path, or methods and tasks; and what is changed in all of its arms ('' or (): nothing)."""

    study: str = ""
    methods: tuple[str, ...] = ()  # METHOD[:VARIANT]
    tasks: tuple[str, ...] = ()
    size: str = ""
    budget: str = ""
    seeds: tuple[int, ...] = ()
    add_seeds: int = 0  # more seeds than in the last run of this study
    overrides: Mapping[str, Any] = field(default_factory=dict)  # 'finetune.lr' -> value; nothing is stronger
    precision: str = ""  # of all training stages: no (fp32), bf16, fp16 or auto
    scale: str = ""  # toy: every arm on embedded images, a few steps each
    unlabelled: str = ""  # a folder of images for pretraining
    labels: str = ""  # to learn from: '1%', '10% seed 1', '5 per class', 'list:PATH'
    name: str = ""  # of the comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSelection(DataSelection):
    """Checkpoints to be scored on a task, and by which protocol."""

    checkpoints: tuple[str, ...]  # files, folders, runs, hub ids, timm:NAME
    task: str
    protocol: str = "task"  # the task's, or 'card': with the preprocessing of the weights' model card
    precision: str = "no"  # fp32; bf16, fp16
    partial: bool = False  # leave out unexpected tensors
    name: str = ""  # of the comparison


def study_request(selection: StudySelection, output: Path) -> Request:
    """The request of a selection. BenchError for values that contradict or miss one another.

    output: where a run is looked for that start_from names.
    """
    where = places(selection.include)
    if selection.unlabelled and not Path(selection.unlabelled).is_dir():
        raise BenchError(f"--unlabelled {selection.unlabelled}: no such folder")
    if selection.scale not in ("", "toy"):
        raise BenchError(f"--scale {selection.scale}: the only scale is toy; leave it out to run the study as written")
    request = Request(
        study=_study(selection, where),
        places=where,
        overrides=_user_overrides(selection),
        roots=data_roots(selection.data_dirs, where),
        unlabelled=selection.unlabelled,
        max_unreadable=selection.max_unreadable,
        limit=selection.limit,
        output=output,
        labels=selection.labels,
        allow_incomplete=selection.allow_incomplete,
    )
    request = toy(request) if selection.scale else request
    # After toy(), which gives the study a name of its own: more seeds than in the last run of that name.
    study = _with_more_seeds(request.study, selection.add_seeds, output) if selection.add_seeds else request.study
    return replace(request, study=study)


def checkpoint_request(selection: CheckpointSelection, output: Path) -> EvaluationRequest:
    """The request to score checkpoints. BenchError for a protocol or precision that does not exist."""
    if selection.protocol not in ("task", "card"):
        raise unknown("protocol", selection.protocol, ["task", "card"])
    precision = PRECISIONS.get(selection.precision, "auto")
    if precision == "auto":
        raise BenchError(f"--mixed-precision {selection.precision}: write no, bf16 or fp16")
    where = places(selection.include)
    return EvaluationRequest(
        sources=selection.checkpoints,
        task=selection.task,
        places=where,
        protocol="card" if selection.protocol == "card" else "task",
        precision=precision,
        partial=selection.partial,
        roots=data_roots(selection.data_dirs, where),
        limit=selection.limit,
        max_unreadable=selection.max_unreadable,
        allow_incomplete=selection.allow_incomplete,
        output=output,
        name=selection.name,
    )


def _study(selection: StudySelection, where: Places) -> Study:
    """The study that is named, or one made of methods and tasks; size, budget and seeds change either."""
    if selection.study and (selection.methods or selection.tasks):
        raise BenchError("give a study, or --method and --task; not both")
    if selection.study:
        study = read_study(selection.study, where)
    elif selection.methods:
        if not selection.tasks:
            raise BenchError("--method needs --task, like --task demo; `bench list tasks` shows them")
        arms = tuple(Arm(method=method) for method in selection.methods)
        study = Study(name=_name_of(selection), tasks=selection.tasks, arms=arms)
    else:
        names = ", ".join(sorted(study_files(where))) or "none"
        raise BenchError(f"nothing to compare: name a study ({names}), or give --method and --task")
    return _changed(study, selection)


def _name_of(selection: StudySelection) -> str:
    words = [*selection.methods, *selection.tasks, selection.size or "base"]
    return "-".join(word.replace(":", ".") for word in words)


def _changed(study: Study, selection: StudySelection) -> Study:
    """A study with what the selection says of all its arms."""
    changes = {"size": selection.size, "budget": selection.budget, "seeds": selection.seeds}
    changes = {key: value for key, value in changes.items() if value}
    defaults = {key: Arm.model_fields[key].default for key in changes}  # an arm's own value gives way
    arms = tuple(arm.model_copy(update=defaults) for arm in study.arms)
    return study.model_copy(update={**changes, "name": selection.name or study.name, "arms": arms})


def _with_more_seeds(study: Study, number: int, output: Path) -> Study:
    """A study with more seeds than it was last run with under `output`, or than it is written with."""
    if study.name in studies(output):
        before = read_plan(output, study.name).study
        if _without_seeds(before) == _without_seeds(study):
            study = before

    def extended(seeds: tuple[int, ...]) -> tuple[int, ...]:
        return (*seeds, *range(max(seeds) + 1, max(seeds) + 1 + number))

    arms = [arm.model_copy(update={"seeds": extended(arm.seeds)}) if arm.seeds else arm for arm in study.arms]
    return study.model_copy(update={"seeds": extended(study.seeds), "arms": tuple(arms)})


def _without_seeds(study: Study) -> Study:
    arms = tuple(arm.model_copy(update={"seeds": None}) for arm in study.arms)
    return study.model_copy(update={"seeds": (), "arms": arms})


def _user_overrides(selection: StudySelection) -> UserOverrides:
    precision: dict[str, Any] = {}
    if selection.precision:
        if selection.precision not in PRECISIONS:
            raise BenchError(f"--mixed-precision {selection.precision}: write no, bf16, fp16 or auto")
        precision = {f"{kind}.precision": PRECISIONS[selection.precision] for kind in TRAINED}
    return UserOverrides(from_environment(os.environ), precision, dict(selection.overrides))


def data_roots(data_dirs: Mapping[str, str], where: Places) -> dict[str, str]:
    """Task -> folder of its data, '' for every task: absolute paths, as selected, else as BENCH_DATA_DIR says."""
    tasks = task_files(where)
    folders = data_dirs or parse_data_dirs(filter(None, [os.environ.get("BENCH_DATA_DIR")]))
    for task, folder in folders.items():
        if task and task not in tasks:
            raise BenchError(f"--data-dir {task}={folder}: {unknown('task', task, tasks)}")
    return {
        task: folder if folder.startswith(HUB) else str(Path(folder).expanduser().absolute())
        for task, folder in folders.items()
    }


def parse_data_dirs(texts: Iterable[str]) -> dict[str, str]:
    """['PATH'] -> {'': 'PATH'}, ['TASK=PATH'] -> {'TASK': 'PATH'}."""
    folders = {}
    for text in texts:
        task, equals, path = text.partition("=")
        named = bool(equals) and os.sep not in task  # a path may hold an equals sign, a task's name no separator
        folders[task if named else ""] = path if named else text
    return folders
