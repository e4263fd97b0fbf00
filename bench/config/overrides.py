"""Config overrides: addresses of values, layers of values from different places, and merging them.

A value has an address: 'finetune.lr' (a recipe), 'pretrain.options.hidden_fraction' (a method's own number),
'model.layer_scale' (every stage) or 'teacher.model.trunk' (one). Inside a stage the address reads 'recipe.lr',
'options.hidden_fraction', 'model.layer_scale'.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bench.config.schema import TRAINED, Model, Recipe, StageKind
from bench.errors import BenchError, nearest, unknown

STAGES = (*TRAINED, "evaluate")
PARTS = {"recipe": tuple(Recipe.model_fields), "model": tuple(Model.model_fields)}
SIZE_INDEPENDENT: tuple[StageKind, ...] = ("tokenizer", "teacher")  # one network for all sizes and seeds of an arm
SHARED = ("model.image_size", "model.patch_size")  # [model] values that also hold for those two
ENVIRONMENT = ("CACHE", "DATA_DIR", "HOME", "LOG_LEVEL", "OUTPUT_DIR")  # BENCH_ variables that are no overrides


@dataclass(frozen=True, slots=True)
class Layer:
    """Values from one place: a method file, a task, a study, the command line."""

    origin: str
    values: dict[str, Any]  # by address
    sources: dict[str, str] = field(default_factory=dict)  # address or stage -> a more exact origin, like a table

    def origin_of(self, address: str) -> str:
        """Where the value at `address` was written, as exactly as is known."""
        stage = address.partition(".")[0]
        return self.sources.get(address) or self.sources.get(stage) or self.origin


class Assignment(NamedTuple):
    """A value and where it was written."""

    value: Any
    origin: str
    published: bool


@dataclass(frozen=True, slots=True)
class Address:
    """Where a value belongs: method '' is every method, stage 'model' is every stage."""

    method: str
    stage: str
    part: str
    name: str

    def __str__(self) -> str:
        inner = self.name if self.part == "recipe" or self.stage == "model" else f"{self.part}.{self.name}"
        return ".".join(word for word in (self.method, self.stage, inner) if word)


def parse_address(text: str, methods: Iterable[str] = (), where: str = "") -> Address:
    """Parse 'beit:pixels.finetune.lr'. BenchError names the unknown word and the nearest known one.

    methods: names that may stand before the stage. where: begins the message of an error.
    """
    words, method = text.strip().split("."), ""
    if len(words) > 2 and words[0] not in (*STAGES, "model"):
        method = words.pop(0)
        if method.partition(":")[0] not in methods:
            raise BenchError(f"{where}{text}: {unknown('method', method, methods)}")
    stage, rest = words[0], words[1:]
    if stage not in (*STAGES, "model"):
        raise BenchError(f"{where}{text}: {unknown('stage', stage, (*STAGES, 'model'))}")
    if stage == "model" and len(rest) > 1 and rest[0] in STAGES:
        stage, rest = rest[0], ["model", *rest[1:]]  # a [model.teacher] table of a method file: model.teacher.trunk
    part = "model" if stage == "model" else "recipe"
    if stage != "model" and len(rest) > 1:
        part = rest.pop(0)
    if len(rest) != 1 or part not in ("recipe", "model", "options"):
        raise BenchError(f"{where}{text}: write stage.key, stage.options.key or model.key, like finetune.lr")
    if part in PARTS and rest[0] not in PARTS[part]:
        raise BenchError(f"{where}unknown key {text!r}.{nearest(rest[0], PARTS[part])}")
    return Address(method, stage, part, rest[0])


def flatten(nested: Mapping[str, Any], where: str) -> dict[str, Any]:
    """{'pretrain': {'lr': .1, 'options': {'x': 1}}} -> {'pretrain.lr': .1, 'pretrain.options.x': 1}.

    BenchError for an address that does not exist.
    """
    flat: dict[str, Any] = {}
    for stage, body in nested.items():
        if not isinstance(body, Mapping):
            raise BenchError(f"{where}: {stage} = {body!r} should be a table of values")
        for name, value in body.items():
            inner = value if isinstance(value, Mapping) else {"": value}
            for key, item in inner.items():
                flat[str(parse_address(f"{stage}.{name}.{key}".rstrip("."), where=f"{where}: "))] = item
    return flat


def from_environment(variables: Mapping[str, str]) -> dict[str, Any]:
    """Overrides from environment variables like BENCH_FINETUNE_LR=2e-3. BenchError for an unknown BENCH_ variable."""
    values = {}
    for name, text in variables.items():
        if name.startswith("BENCH_") and name.removeprefix("BENCH_") not in ENVIRONMENT:
            values[str(_parse_variable(name))] = parse_value(text)
    return values


def _parse_variable(name: str) -> Address:
    words = name.removeprefix("BENCH_").lower().split("_")
    stage, rest = words[0], words[1:]
    if stage not in (*STAGES, "model") or not rest:
        examples = [*ENVIRONMENT, *(f"{kind.upper()}_LR" for kind in TRAINED)]
        hint = nearest(name.removeprefix("BENCH_"), examples)
        raise BenchError(f"{name} in the environment is not a setting of bench.{hint}")
    if rest[0] in ("options", "model") and len(rest) > 1:
        return parse_address(f"{stage}.{rest[0]}.{'_'.join(rest[1:])}", where=f"{name} in the environment: ")
    return parse_address(f"{stage}.{'_'.join(rest)}", where=f"{name} in the environment: ")


def parse_set(text: str) -> tuple[str, Any]:
    """'finetune.lr=2e-3' -> ('finetune.lr', 0.002)."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise BenchError(f"--set {text!r}: write KEY=VALUE, like finetune.lr=2e-3")
    return key.strip(), parse_value(value)


def parse_value(text: str) -> Any:
    """A number, boolean or list in TOML syntax; anything else is the text itself."""
    try:
        return tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def merge_layers(kind: StageKind, layers: Iterable[Layer], published: int) -> dict[str, list[Assignment]]:
    """Every assignment to a stage's values, by inner address ('recipe.lr'), weakest layer first: the last one holds.

    published: how many of the layers, from the first, make up the published recipe.
    """
    history: dict[str, list[Assignment]] = {}
    for number, layer in enumerate(layers):
        # Within a layer [model] comes first, so that a stage's own model values win over those of every stage.
        for text, value in sorted(layer.values.items(), key=lambda item: not item[0].startswith("model.")):
            address = parse_address(text)
            for_all = address.stage == "model" and (kind not in SIZE_INDEPENDENT or text in SHARED)
            if address.stage == kind or for_all:
                assignment = Assignment(value, layer.origin_of(text), number < published)
                history.setdefault(f"{address.part}.{address.name}", []).append(assignment)
                if text == f"{kind}.epochs" and f"{kind}.steps" not in layer.values and "recipe.steps" in history:
                    # Steps win over epochs, so a layer that sets epochs has to cancel the steps of a weaker one.
                    history["recipe.steps"].append(assignment._replace(value=0))
    return history
