"""A stage's values, once all layers are laid over one another: read, compared with the published ones, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from bench.config.overrides import SIZE_INDEPENDENT, Assignment
from bench.config.schema import Model, Protocol, Recipe, Scalar, StageKind, Task
from bench.config.stage import COSMETIC, Stage
from bench.environment import computes_in_bf16
from bench.errors import BenchError, parse

HALF = (0.5, 0.5, 0.5)


class ResolvedConfig(NamedTuple):
    """What was written for a stage, read as its model, recipe and options."""

    where: str
    kind: StageKind
    assignments: dict[str, list[Assignment]]  # inner address -> all that was assigned there; the last one holds

    def values(self, part: str, published: bool = False) -> dict[str, Any]:
        """The values of a part that hold, or that the published recipe has."""
        values = {}
        for place, assignments in self.assignments.items():
            counted = [a for a in assignments if a.published] if published else assignments
            if place.startswith(f"{part}.") and counted:
                values[place.partition(".")[2]] = counted[-1].value
        return values

    def recipe(self, published: bool = False) -> Recipe:
        """The training recipe, in a precision that the machine has where the recipe leaves that open."""
        found = parse(Recipe, self.values("recipe", published), self.where)
        if found.precision != "auto":
            return found
        return found.model_copy(update={"precision": "bf16" if computes_in_bf16() else "fp32"})

    def options(self) -> dict[str, Scalar]:
        """The method's own numbers, in the type of the published ones."""
        defaults = self.values("options", published=True)
        return {
            name: coerce(defaults[name], value, f"{self.where}: options.{name}")
            for name, value in sorted(self.values("options").items())
        }

    def model(self, published: bool = False, **decided: Any) -> Model:
        """The network. That of a tokenizer or teacher has no size: it is the same beside every trunk."""
        size = {"size": ""} if self.kind in SIZE_INDEPENDENT else {}
        return parse(Model, {**size, **self.values("model", published), **decided}, self.where)

    def departures(self) -> dict[str, tuple[Any, Any]]:
        """Address -> (published, here) for every value that is not the published one."""
        found = {}
        pairs = [
            ("recipe", self.recipe(published=True).model_dump(mode="json"), self.recipe().model_dump(mode="json")),
            ("model", self.model(published=True).model_dump(mode="json"), self.model().model_dump(mode="json")),
            ("options", self.values("options", published=True), self.options()),
        ]
        for part, published, here in pairs:
            for name in here:
                unread = name == "decoder" and self.kind != "finetune"
                if published[name] != here[name] and name not in COSMETIC and not unread:
                    found[f"{part}.{name}"] = (published[name], here[name])
        return found


def coerce(default: Any, value: Any, where: str) -> Any:
    """`value` in the type of `default`; BenchError when it is of another."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise BenchError(f"{where} = {value!r}: should be of type {type(default).__name__}, like {default!r}")
    return value


def steps_of(stage: Stage) -> int:
    """Optimiser steps of a training stage. An epoch leaves out its incomplete last batch."""
    assert stage.recipe is not None
    if stage.recipe.steps:
        return stage.recipe.steps
    per_epoch = stage.data["train"].images // stage.recipe.batch_size
    return max(1, round(stage.recipe.epochs * per_epoch)) if per_epoch else 0


def with_epochs(recipe: Recipe, images: int) -> Recipe:
    """The recipe with the epochs that its `steps` make of so many images, where it counts in steps."""
    per_epoch = images // recipe.batch_size
    if not recipe.steps or not per_epoch:
        return recipe
    return recipe.model_copy(update={"epochs": recipe.steps / per_epoch})


def with_normalisation(protocol: Protocol, recipe: Recipe | None) -> Protocol:
    """The protocol with the pixels that a recipe asks for; an evaluation has those of what was trained."""
    if recipe is None or recipe.pixels == "task":
        return protocol
    return protocol.model_copy(update={"mean": HALF, "std": HALF})


def check(stage: Stage, where: str, task: Task, parents: Sequence[Stage] = ()) -> None:
    """BenchError for values that contradict one another."""
    recipe, model = stage.recipe, stage.model
    assert recipe is not None
    if model.image_size % model.patch_size:
        raise BenchError(f"{where}: image_size {model.image_size} is no multiple of patch_size {model.patch_size}")
    if stage.kind not in SIZE_INDEPENDENT and model.width % model.heads:
        raise BenchError(f"{where}: width {model.width} is no multiple of heads {model.heads}")
    _check_length(stage, recipe, where)
    if recipe.freeze and stage.kind != "finetune":
        raise BenchError(f"{where}: freeze = true would leave nothing to learn; it is for fine-tuning")
    if task.kind == "classification" and stage.kind in ("supervised", "finetune"):
        _check_resolution(stage, where)
    for teacher in (parent for parent in parents if parent.kind == "teacher"):
        if (teacher.protocol.mean, teacher.protocol.std) != (stage.protocol.mean, stage.protocol.std):
            raise BenchError(f"{where}: student and teacher see the same pixels; give teacher.pixels the same value")


def check_scored(trained: Stage, task: Task) -> None:
    """BenchError for a task that cannot score what was trained on another."""
    if not task.evaluates:
        return
    if task.classes and trained.model.classes != task.classes:
        known = f"the models of {task.evaluates} know {trained.model.classes}"
        raise BenchError(f"task {task.name} has {task.classes} classes, but {known}")
    if task.protocol.resolution != trained.model.image_size:
        raise BenchError(
            f"task {task.name} scores at {task.protocol.resolution} pixels, but the models of {task.evaluates} take "
            f"{trained.model.image_size}"
        )


def _check_length(stage: Stage, recipe: Recipe, where: str) -> None:
    """The batch fits into the data, the warm-up into the stage."""
    train, kind = stage.data["train"], stage.kind
    if recipe.batch_size > train.images:
        raise BenchError(
            f"{where}: batch_size {recipe.batch_size} is more than the {train.images} images of "
            f"{train.dataset}/{train.split}; set {kind}.batch_size to {train.images} or less"
        )
    if recipe.warmup_steps and recipe.warmup_steps >= steps_of(stage):
        raise BenchError(
            f"{where}: warmup_steps {recipe.warmup_steps} is not less than the {steps_of(stage)} steps of the stage; "
            f"set {kind}.warmup_steps as well"
        )
    if not recipe.warmup_steps and recipe.warmup_epochs >= recipe.epochs:
        raise BenchError(
            f"{where}: warmup_epochs {recipe.warmup_epochs:g} is not less than epochs {recipe.epochs:g}; "
            f"set {kind}.warmup_epochs as well"
        )


def _check_resolution(stage: Stage, where: str) -> None:
    if stage.model.image_size != stage.protocol.resolution:
        raise BenchError(
            f"{where}: image_size {stage.model.image_size} is not the {stage.protocol.resolution} pixels that "
            f"task {stage.task} scores at"
        )
