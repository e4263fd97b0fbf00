"""What the options ask for: a study to be planned, a way of running it."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from bench.launch.local import Execution
from bench.layers import Wishes
from bench.options import Machine, Selection
from bench.plan import Request
from bench.spec import TRAINED, Arm, BenchError, Study, unknown
from bench.tasks import places, read_study, study_files, task_files
from bench.values import from_environment, parse_set

PRECISIONS = {"auto": "auto", "no": "fp32", "fp32": "fp32", "bf16": "bf16", "fp16": "fp16"}  # accelerate's names, and ours


def request(selection: Selection) -> Request:
    """What a selection asks to be planned. BenchError for options that contradict or miss one another."""
    where = places(selection.include)
    if selection.unlabelled and not Path(selection.unlabelled).is_dir():
        raise BenchError(f"--unlabelled {selection.unlabelled}: no such folder")
    return Request(
        study=_study(selection, where),
        places=where,
        wishes=_wishes(selection),
        roots=_roots(selection.data_dir, task_files(where)),
        unlabelled=selection.unlabelled,
        max_unreadable=selection.max_unreadable,
        limit=selection.limit,
    )


def execution(machine: Machine, max_unreadable: int = 0) -> Execution:
    """How the machine is to be used."""
    return Execution(
        num_processes=machine.num_processes,
        devices=machine.devices,
        micro_batch_size=machine.micro_batch_size,
        workers=machine.workers,
        compile=machine.compile,
        gradient_checkpointing=machine.gradient_checkpointing,
        max_unreadable=max_unreadable,
    )


def _study(selection: Selection, where: tuple[Path, ...]) -> Study:
    """The study that is named, or one made of --method and --task; --size, --budget and --seeds change either."""
    if selection.study and (selection.method or selection.task):
        raise BenchError("give a study, or --method and --task; not both")
    if selection.study:
        study = read_study(selection.study, where)
    elif selection.method:
        if not selection.task:
            raise BenchError("--method needs --task, like --task demo; `bench list tasks` shows them")
        arms = tuple(Arm(method=method) for method in selection.method)
        study = Study(name=_own_name(selection), tasks=tuple(selection.task), arms=arms)
    else:
        known = ", ".join(sorted(study_files(where))) or "none"
        raise BenchError(f"what is to be compared? Name a study ({known}), or give --method and --task")
    return _changed(study, selection)


def _changed(study: Study, selection: Selection) -> Study:
    """A study with what the flags say of all its arms."""
    changes = {"size": selection.size, "budget": selection.budget, "seeds": _seeds(selection.seeds)}
    changes = {key: value for key, value in changes.items() if value}
    own = {key: Arm.model_fields[key].default for key in changes}  # an arm's own value gives way
    arms = tuple(arm.model_copy(update=own) for arm in study.arms)
    return study.model_copy(update={**changes, "name": selection.name or study.name, "arms": arms})


def _own_name(selection: Selection) -> str:
    words = [*selection.method, *selection.task, selection.size or "base"]
    return "-".join(word.replace(":", ".") for word in words)


def _seeds(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdigit() for word in words) or len(set(words)) < len(words):
        raise BenchError(f"--seeds {text}: write different whole numbers from 0, like 0,1,2")
    return tuple(int(word) for word in words)


def _roots(texts: list[str], known: Collection[str]) -> dict[str, str]:
    """--data-dir PATH for every task, or TASK=PATH for one; else what BENCH_DATA_DIR says."""
    found: dict[str, str] = {}
    for text in texts or filter(None, [os.environ.get("BENCH_DATA_DIR")]):
        task, equals, path = text.partition("=")
        named = bool(equals) and os.sep not in task  # a path may hold an equals sign, a task's name no separator
        if named and task not in known:
            raise BenchError(f"--data-dir {text}: {unknown('task', task, known)}")
        found[task if named else ""] = str(Path(path if named else text).expanduser().absolute())
    return found


def _wishes(selection: Selection) -> Wishes:
    options = {}
    if selection.mixed_precision:
        if selection.mixed_precision not in PRECISIONS:
            raise BenchError(f"--mixed-precision {selection.mixed_precision}: write no, bf16, fp16 or auto")
        options = {f"{stage}.precision": PRECISIONS[selection.mixed_precision] for stage in TRAINED}
    return Wishes(from_environment(os.environ), options, dict(parse_set(text) for text in selection.set))
