"""The layers of an arm's values, from the method's published recipe up to --set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from bench.config.overrides import Layer, address, flatten
from bench.config.schema import SIZES, TRAINED, Arm, Method, Overrides, StageKind, Study, Task, Variant
from bench.errors import BenchError, nearest, unknown

PUBLISHED = "published"  # the budget of the paper: no changes


class ArmConfig(NamedTuple):
    """What an arm is made of."""

    arm: Arm
    method: Method
    variant: str
    size: str

    @property
    def name(self) -> str:
        """method[:variant]"""
        return f"{self.method.name}:{self.variant}" if self.variant else self.method.name


class UserOverrides(NamedTuple):
    """Values from outside the files: 'finetune.lr' or 'beit.pretrain.lr' -> value."""

    environment: dict[str, Any] = {}  # noqa: RUF012
    options: dict[str, Any] = {}  # noqa: RUF012 - by a flag of their own, like --mixed-precision
    sets: dict[str, Any] = {}  # noqa: RUF012


def published_layers(arm_config: ArmConfig, task: Task) -> list[Layer]:
    """The method's own numbers, those of its size, of its variant, and of a task whose recipes are the papers'."""
    method, size = arm_config.method, arm_config.size
    where = f"method {method.name}"
    known = sorted({*SIZES, *method.sizes})
    if size not in known:
        raise unknown("size", size, known)
    width, depth, heads = SIZES.get(size, (768, 12, 12))
    numbers = {"model.size": size, "model.width": width, "model.depth": depth, "model.heads": heads}
    own = flatten(method.recipe, where) | flatten({"model": method.model}, where)
    own |= flatten({stage: {"options": values} for stage, values in method.options.items()}, where)
    variant = variant_of(method, arm_config.variant)
    return [
        Layer(f"size {size}", numbers),
        Layer(where, own, _sources(method)),
        Layer(f"{where}, size {size}", method.sizes.get(size, {})),
        Layer(variant.source or f"variant {arm_config.name}", {k: v for k, v in variant.set.items() if k != "stages"}),
        *(_of_task(task, method.name) if task.source else ()),
    ]


def _of_task(task: Task, method: str) -> list[Layer]:
    """The task's sizes and its changes to the recipes."""
    sizes = {"model.image_size": task.image_size, "model.patch_size": task.patch_size}
    origin = f"task {task.name}"
    return [Layer(origin, sizes), *_overrides(task, method, task.source or origin)]


def variants(method: Method) -> dict[str, Variant]:
    """The variants of a method: its own, and `probe` for every method that says how it is probed."""
    return {**({"probe": _probe(method)} if "probe" in method.recipe else {}), **method.variants}


def _probe(method: Method) -> Variant:
    """What was learned is left as it is: a linear classifier on it, and nearest neighbours, instead of fine-tuning."""
    stages = [*(stage for stage in method.stages if stage != "finetune"), "probe"]
    summary = "frozen features under a linear classifier, and by nearest neighbours, instead of fine-tuning"
    return Variant(summary=summary, fidelity="variant", source="BEiT run_linear_eval.py", set={"stages": stages})


def variant_of(method: Method, name: str) -> Variant:
    """A variant of a method by name, '' being the method as it is."""
    if not name:
        return Variant(summary=method.summary, fidelity=method.fidelity)
    known = variants(method)
    if name not in known:
        raise unknown(f"variant of {method.name}", name, known)
    return known[name]


def stages_of_variant(arm_config: ArmConfig) -> tuple[StageKind, ...]:
    """What an arm goes through before its evaluation: the method's stages, or those that its variant needs."""
    stages = variant_of(arm_config.method, arm_config.variant).set.get("stages", arm_config.method.stages)
    for stage in stages:
        if stage not in TRAINED:
            raise unknown(f"stage of {arm_config.name}", stage, TRAINED)
    return tuple(stages)


def override_layers(
    arm_config: ArmConfig, study: Study, task: Task, budget: str, user_overrides: UserOverrides
) -> list[Layer]:
    """All that is laid over the published recipe, the last layer being the strongest."""
    method = arm_config.method.name
    layers = [] if task.source else _of_task(task, method)
    if budget:
        layers += _overrides(task.budgets[budget], method, f"budget {budget} of task {task.name}")
    layers += _overrides(study, method, f"study {study.name}")
    layers += [
        Layer("environment", addressed(user_overrides.environment, arm_config)),
        Layer(f"arm of study {study.name}", addressed(arm_config.arm.set, arm_config)),
        Layer("command line", addressed(user_overrides.options, arm_config)),
        Layer("--set", addressed(user_overrides.sets, arm_config)),
    ]
    return layers


def budget_of(arm: Arm, study: Study, task: Task) -> str:
    """The budget that holds: the arm's, the study's, or the task's default; '' is the published one."""
    name = arm.budget or study.budget or ("default" if "default" in task.budgets else "")
    if name in ("", PUBLISHED):
        return ""
    if name not in task.budgets:
        raise unknown(f"budget of task {task.name}", name, [*task.budgets, PUBLISHED])
    return name


def addressed(values: Mapping[str, Any], arm_config: ArmConfig) -> dict[str, Any]:
    """Those of `values` that speak to this arm, without the method's name before them."""
    found = {}
    for text, value in values.items():
        place = address(text, methods=[arm_config.method.name, place_method(text)])
        if place.method in ("", arm_config.method.name, arm_config.name) and has(arm_config.method, text, place.method):
            found[str(place._replace(method=""))] = value
    return found


def place_method(text: str) -> str:
    """The method before an address, if there is one."""
    return text.partition(".")[0].partition(":")[0]


def has(method: Method, text: str, named: str) -> bool:
    """Whether a method has the number at this address. BenchError if it was named and has not."""
    place = address(text, methods=[place_method(text)])
    if place.part != "options":
        return True
    known = method.options.get(place.stage, {})
    if place.name not in known and named:
        raise BenchError(f"{method.name} has no {text!r}.{nearest(place.name, known)}")
    return place.name in known


def from_files(layers: Iterable[Layer], method: Method) -> None:
    """BenchError when a file sets a number that the method does not have."""
    for layer in layers:
        for text in layer.values:
            place = address(text)
            known = method.options.get(place.stage, {})
            if place.part == "options" and place.name not in known:
                raise BenchError(f"{layer.origin}: {method.name} has no {text!r}.{nearest(place.name, known)}")


def _overrides(source: Overrides | Study, method: str, origin: str) -> list[Layer]:
    general = Layer(origin, flatten(source.recipe, origin))
    return [general, Layer(f"{origin}, for {method}", flatten(source.methods.get(method, {}), origin))]


def _sources(method: Method) -> dict[str, str]:
    """Where each number of a method is from: 'pretrain' -> its default source, 'pretrain.lr' -> its own."""
    found = {}
    for stage, by_key in method.sources.items():
        for key, source in by_key.items():
            found[stage if key == "default" else f"{stage}.{key}"] = source
    return found
