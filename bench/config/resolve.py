"""Config resolution: a stage's merged values as model, recipe and options; departures; checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.config.overrides import SIZE_INDEPENDENT, Assignment
from bench.config.schema import Model, Protocol, Recipe, Scalar, StageKind, Task
from bench.config.stage import COSMETIC, Stage
from bench.environment import computes_in_bf16
from bench.errors import BenchError, parse

HALF = (0.5, 0.5, 0.5)  # mean and deviation that map [0, 1] to [-1, 1]


@dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """All assignments to a stage's values, and the model, recipe and options that they make."""

    where: str
    kind: StageKind
    assignments: dict[str, list[Assignment]]  # by inner address, like recipe.lr; the last one holds

    def values(self, part: str, published: bool = False) -> dict[str, Any]:
        """The values of a part; published: those of the published recipe."""
        values = {}
        for place, assignments in self.assignments.items():
            eligible = [a for a in assignments if a.published] if published else assignments
            if place.startswith(f"{part}.") and eligible:
                values[place.partition(".")[2]] = eligible[-1].value
        return values

    def recipe(self, published: bool = False) -> Recipe:
        """The training recipe; precision "auto" becomes bf16 where this machine computes in it, else fp32."""
        recipe = parse(Recipe, self.values("recipe", published), self.where)
        if recipe.precision != "auto":
            return recipe
        return recipe.model_copy(update={"precision": "bf16" if computes_in_bf16() else "fp32"})

    def options(self) -> dict[str, Scalar]:
        """The method's options, each in the type of its published value."""
        defaults = self.values("options", published=True)
        return {
            name: coerce(defaults[name], value, f"{self.where}: options.{name}")
            for name, value in sorted(self.values("options").items())
        }

    def model(self, published: bool = False, **decided: Any) -> Model:
        """The network. decided: values that no layer writes, like the number of classes."""
        # A tokenizer or teacher is shared by trunks of all sizes, so its model, and with it its key, names none.
        size = {"size": ""} if self.kind in SIZE_INDEPENDENT else {}
        return parse(Model, {**size, **self.values("model", published), **decided}, self.where)

    def departures(self) -> dict[str, tuple[Any, Any]]:
        """Address -> (published, here) for every value that is not the published one."""
        departures = {}
        parts = [
            ("recipe", self.recipe(published=True).model_dump(mode="json"), self.recipe().model_dump(mode="json")),
            ("model", self.model(published=True).model_dump(mode="json"), self.model().model_dump(mode="json")),
            ("options", self.values("options", published=True), self.options()),
        ]
        for part, published, here in parts:
            for name in here:
                unused = name == "decoder" and self.kind != "finetune"  # only fine-tuning has a segmentation head
                if published[name] != here[name] and name not in COSMETIC and not unused:
                    departures[f"{part}.{name}"] = (published[name], here[name])
        return departures


def coerce(default: Any, value: Any, where: str) -> Any:
    """`value` in the type of `default`, an int as a float where that is meant; BenchError for another type."""
    # A bool is an int in Python, but true is no number for a user.
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise BenchError(f"{where} = {value!r}: should be of type {type(default).__name__}, like {default!r}")
    return value


def steps_of(stage: Stage) -> int:
    """Optimiser steps of a training stage. An epoch drops its incomplete last batch."""
    assert stage.recipe is not None
    if stage.recipe.steps:
        return stage.recipe.steps
    per_epoch = stage.data["train"].images // stage.recipe.batch_size
    return max(1, round(stage.recipe.epochs * per_epoch)) if per_epoch else 0


def with_epochs(recipe: Recipe, images: int) -> Recipe:
    """The recipe with `epochs` derived from `steps`, where it counts in steps. images: of the training split."""
    per_epoch = images // recipe.batch_size
    if not recipe.steps or not per_epoch:
        return recipe
    return recipe.model_copy(update={"epochs": recipe.steps / per_epoch})


def with_normalisation(protocol: Protocol, recipe: Recipe | None) -> Protocol:
    """The protocol with the normalisation of a recipe; None: the task's own."""
    if recipe is None or recipe.pixels == "task":
        return protocol
    return protocol.model_copy(update={"mean": HALF, "std": HALF})


def check(stage: Stage, where: str, task: Task, parents: Sequence[Stage] = ()) -> None:
    """Raise BenchError for values of a training stage that contradict one another. where: begins the message."""
    recipe, model = stage.recipe, stage.model
    assert recipe is not None
    if model.image_size % model.patch_size:
        raise BenchError(f"{where}: image_size {model.image_size} is not a multiple of patch_size {model.patch_size}")
    if stage.kind not in SIZE_INDEPENDENT and model.width % model.heads:
        raise BenchError(f"{where}: width {model.width} is not a multiple of heads {model.heads}")
    _check_length(stage, recipe, where)
    if recipe.freeze and stage.kind != "finetune":
        raise BenchError(f"{where}: freeze = true would leave nothing to learn; it is for fine-tuning")
    if task.kind == "classification" and stage.kind in ("supervised", "finetune"):
        _check_resolution(stage, where)
    for teacher in (parent for parent in parents if parent.kind == "teacher"):
        if (teacher.protocol.mean, teacher.protocol.std) != (stage.protocol.mean, stage.protocol.std):
            raise BenchError(f"{where}: student and teacher must normalise pixels alike; set teacher.pixels as well")


def check_scored(trained: Stage, task: Task) -> None:
    """Raise BenchError when a task that only evaluates cannot score a model trained on the other task."""
    if not task.evaluates:
        return
    if task.classes and trained.model.classes != task.classes:
        raise BenchError(
            f"task {task.name} has {task.classes} classes, but the models of {task.evaluates} have "
            f"{trained.model.classes}"
        )
    if task.protocol.resolution != trained.model.image_size:
        raise BenchError(
            f"task {task.name} scores at {task.protocol.resolution} pixels, but the models of {task.evaluates} take "
            f"{trained.model.image_size}"
        )


def _check_length(stage: Stage, recipe: Recipe, where: str) -> None:
    """Raise BenchError for a batch larger than the training split, or a warm-up as long as the stage."""
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
