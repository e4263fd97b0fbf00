"""Toy scale: the arms of a study through the same code, on embedded images, in minutes.

Every split is limited, so nothing of it is reportable.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bench.config.registry import Places, read_task
from bench.config.schema import TRAINED, Arm, Study
from bench.errors import BenchError
from bench.planning.request import Request

IMAGES = 32  # of each split
# Depths differ by size, so that two arms of a study that differ only in size do not become the same arm.
DEPTHS = {"nano": 4, "tiny": 2, "small": 3, "base": 4, "large": 6}
STEPS = {  # of every training stage: two steps of 16 images
    "epochs": 1.0,
    "steps": 0,
    "batch_size": 16,
    "warmup_epochs": 0.0,
    "warmup_steps": 0,
    "repeats": 1,
    "precision": "fp32",
}
MORE_EPOCHS = 2.0  # of an arm that sets its own epochs, so that it stays a different arm
EMBEDDED = {  # address -> value -> replacement: small or trained here, so that nothing is downloaded; '': any other
    "pretrain.options.tokenizer": {"none": "none", "": "trained"},
    "supervised.options.teacher": {"": "stage"},
    "teacher.model.trunk": {
        "timm:regnety_040": "timm:regnety_002",
        "timm:regnety_080": "timm:regnety_004",
        "timm:regnety_120": "timm:regnety_006",
        "timm:deit_base_patch16_224": "timm:resnet10t",
        "": "timm:resnet14t",
    },
}


def toy(request: Request) -> Request:
    """The same request with nano trunks, embedded images and a few steps. BenchError for a task without a toy."""
    limit = IMAGES if request.limit is None else request.limit
    return replace(request, study=_study(request.study, request.places), limit=limit)


def _study(study: Study, where: Places) -> Study:
    names = {name for arm in study.arms for name in (arm.task, *(arm.intermediate or ())) if name}
    toys = {name: _toy_of(name, where) for name in (*study.tasks, *names)}
    changes: dict[str, Any] = {
        "name": f"{study.name}-toy",
        "title": f"{study.title or study.name}, at toy scale",
        "tasks": tuple(toys[name] for name in study.tasks),
        "size": "nano",
        "budget": "",
        "arms": tuple(_arm(arm, study, toys) for arm in study.arms),
        "claims": (),  # they are about the real scale
        "recipe": {stage: {**study.recipe.get(stage, {}), **STEPS} for stage in (*TRAINED, *study.recipe)},
        "methods": {name: _without_steps(recipes) for name, recipes in study.methods.items()},
    }
    return study.model_copy(update=changes)


def _without_steps(recipes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {stage: {k: v for k, v in recipe.items() if k not in STEPS} for stage, recipe in recipes.items()}


def _toy_of(name: str, where: Places) -> str:
    task = read_task(name, where)
    if not task.toy:
        raise BenchError(f"task {name} names no toy, a task with embedded data; --scale toy needs one")
    return task.toy


def _arm(arm: Arm, study: Study, toys: dict[str, str]) -> Arm:
    size = arm.size or study.size
    if size not in DEPTHS:
        raise BenchError(f"size {size!r} has no toy; sizes with one are {', '.join(DEPTHS)}")
    values = {name: _small(name, value) for name, value in arm.set.items()}
    changes = {
        "task": toys[arm.task] if arm.task else "",
        "size": "nano",
        "budget": "",
        "published": "",  # that row is about the real scale
        "label": arm.label or (f"{arm.method.replace(':', ' ')} {size}" if arm.size else ""),
        "intermediate": None if arm.intermediate is None else tuple(toys[name] for name in arm.intermediate),
        "set": {"model.depth": DEPTHS[size]} | {name: value for name, value in values.items() if value is not None},
    }
    return arm.model_copy(update=changes)


def _small(name: str, value: Any) -> Any:
    """A value of an arm at toy scale; None: leave it out, as the toy decides it, or weights of another size."""
    key = name.rpartition(".")[2]
    if key == "epochs":
        return MORE_EPOCHS
    if key in STEPS or key == "start_from":
        return None
    replacements = EMBEDDED.get(name)
    return replacements.get(str(value), replacements[""]) if replacements else value
