"""Config precedence: the layers of an arm's values, from the method's published recipe up to --set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from bench.config.overrides import Layer, flatten, parse_address
from bench.config.schema import SIZES, TRAINED, Arm, Method, Overrides, StageKind, Study, Task, Variant
from bench.errors import BenchError, nearest, unknown

PUBLISHED = "published"  # the budget of the paper: no changes


class ArmConfig(NamedTuple):
    """An arm of a study with its method read, and its variant and size decided."""

    arm: Arm
    method: Method
    variant: str
    size: str

    @property
    def name(self) -> str:
        """method[:variant]"""
        return f"{self.method.name}:{self.variant}" if self.variant else self.method.name


class UserOverrides(NamedTuple):
    """Overrides from outside the files, by address: 'finetune.lr' or 'beit.pretrain.lr' -> value."""

    environment: dict[str, Any] = {}  # noqa: RUF012 - never written to
    options: dict[str, Any] = {}  # noqa: RUF012 - of flags like --mixed-precision
    sets: dict[str, Any] = {}  # noqa: RUF012 - of --set


def published_layers(config: ArmConfig, task: Task) -> list[Layer]:
    """The layers of the published recipe: size, method, method at this size, variant, and a task with a `source`."""
    method, size = config.method, config.size
    where = f"method {method.name}"
    sizes = sorted({*SIZES, *method.sizes})
    if size not in sizes:
        raise unknown("size", size, sizes)
    width, depth, heads = SIZES.get(size, SIZES["base"])  # a size of the method's own says what it changes
    numbers = {"model.size": size, "model.width": width, "model.depth": depth, "model.heads": heads}
    own = flatten(method.recipe, where) | flatten({"model": method.model}, where)
    own |= flatten({stage: {"options": values} for stage, values in method.options.items()}, where)
    variant = variant_of(method, config.variant)
    return [
        Layer(f"size {size}", numbers),
        Layer(where, own, _sources(method)),
        Layer(f"{where}, size {size}", method.sizes.get(size, {})),
        Layer(variant.source or f"variant {config.name}", {k: v for k, v in variant.set.items() if k != "stages"}),
        *(_task_layers(task, method.name) if task.source else ()),  # the papers' own recipes on this task
    ]


def _task_layers(task: Task, method: str) -> list[Layer]:
    """The task's image and patch size, and its changes to the recipes."""
    sizes = {"model.image_size": task.image_size, "model.patch_size": task.patch_size}
    origin = f"task {task.name}"
    return [Layer(origin, sizes), *_overrides(task, method, task.source or origin)]


def variants(method: Method) -> dict[str, Variant]:
    """The variants of a method: its own, and `probe` for every method with a recipe for linear probing."""
    return {**({"probe": _probe(method)} if "probe" in method.recipe else {}), **method.variants}


def _probe(method: Method) -> Variant:
    """Linear probing and nearest neighbours on frozen features, instead of fine-tuning."""
    stages = [*(stage for stage in method.stages if stage != "finetune"), "probe"]
    summary = "frozen features under a linear classifier, and by nearest neighbours, instead of fine-tuning"
    return Variant(summary=summary, fidelity="variant", source="BEiT run_linear_eval.py", set={"stages": stages})


def variant_of(method: Method, name: str) -> Variant:
    """A variant of a method by name, '' being the method as it is."""
    if not name:
        return Variant(summary=method.summary, fidelity=method.fidelity)
    own = variants(method)
    if name not in own:
        raise unknown(f"variant of {method.name}", name, own)
    return own[name]


def stages_of(config: ArmConfig) -> tuple[StageKind, ...]:
    """The training stages of an arm: the method's, or those of its variant."""
    stages = variant_of(config.method, config.variant).set.get("stages", config.method.stages)
    for stage in stages:
        if stage not in TRAINED:
            raise unknown(f"stage of {config.name}", stage, TRAINED)
    return tuple(stages)


def override_layers(
    config: ArmConfig, study: Study, task: Task, budget: str, user_overrides: UserOverrides
) -> list[Layer]:
    """The layers over the published recipe, weakest first."""
    method = config.method.name
    layers = [] if task.source else _task_layers(task, method)  # with a source, they are among the published layers
    if budget:
        layers += _overrides(task.budgets[budget], method, f"budget {budget} of task {task.name}")
    layers += _overrides(study, method, f"study {study.name}")
    layers += [
        Layer("environment", overrides_for(user_overrides.environment, config)),
        Layer(f"arm of study {study.name}", overrides_for(config.arm.set, config)),
        Layer("command line", overrides_for(user_overrides.options, config)),
        Layer("--set", overrides_for(user_overrides.sets, config)),
    ]
    return layers


def budget_of(arm: Arm, study: Study, task: Task) -> str:
    """The budget of an arm: its own, else the study's, else the task's default; '' is the published one."""
    name = arm.budget or study.budget or ("default" if "default" in task.budgets else "")
    if name in ("", PUBLISHED):
        return ""
    if name not in task.budgets:
        raise unknown(f"budget of task {task.name}", name, [*task.budgets, PUBLISHED])
    return name


def overrides_for(values: Mapping[str, Any], config: ArmConfig) -> dict[str, Any]:
    """The overrides that apply to this arm, without the method's name before them."""
    applying = {}
    for text, value in values.items():
        # Every method may be named here: one that is not this arm's is skipped, not refused.
        address = parse_address(text, methods=[config.method.name, method_prefix(text)])
        if address.method in ("", config.method.name, config.name) and has_option(config.method, text):
            applying[str(replace(address, method=""))] = value
    return applying


def method_prefix(text: str) -> str:
    """The first word of an address, without a variant: the method, where it names one."""
    return text.partition(".")[0].partition(":")[0]


def has_option(method: Method, text: str) -> bool:
    """Whether a method has the value at this address. BenchError if the address names the method and it does not."""
    address = parse_address(text, methods=[method_prefix(text)])
    if address.part != "options":
        return True
    options = method.options.get(address.stage, {})
    if address.name not in options and address.method:
        raise BenchError(f"{method.name} has no {text!r}.{nearest(address.name, options)}")
    return address.name in options


def check_options_exist(layers: Iterable[Layer], method: Method) -> None:
    """Raise BenchError when a layer sets an option that the method does not have."""
    for layer in layers:
        for text in layer.values:
            address = parse_address(text)
            options = method.options.get(address.stage, {})
            if address.part == "options" and address.name not in options:
                raise BenchError(f"{layer.origin}: {method.name} has no {text!r}.{nearest(address.name, options)}")


def _overrides(source: Overrides | Study, method: str, origin: str) -> list[Layer]:
    general = Layer(origin, flatten(source.recipe, origin))
    return [general, Layer(f"{origin}, for {method}", flatten(source.methods.get(method, {}), origin))]


def _sources(method: Method) -> dict[str, str]:
    """Where the values of a method are from: 'pretrain' -> its default source, 'pretrain.lr' -> its own."""
    return {
        stage if key == "default" else f"{stage}.{key}": source
        for stage, by_key in method.sources.items()
        for key, source in by_key.items()
    }
