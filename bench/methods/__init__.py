"""The methods: NAME.toml holds a method's numbers and their sources, NAME.py its code. This folder is the registry.

A package of its own adds a method through an entry point of the group `bench.methods` that names such a module.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bench.config.schema import Method, Recipe
from bench.config.stage import Stage
from bench.errors import BenchError, parse, read_toml, unknown

if TYPE_CHECKING:
    from bench.methods.objective import Objective

View = Callable[[dict[str, Any]], dict[str, Any]]  # from a sample to what a batch holds of it; runs in a loader worker
Parts = dict[str, Any]  # trained objectives of earlier stages, by role: tokenizer, teacher


class MethodModule(Protocol):
    """What NAME.py must have, for stages of kind 'pretrain' or 'supervised'; the other kinds are the same for all."""

    def view(self, stage: Stage) -> View:
        """The transform of one sample of the training split; its random draws come from the global generators."""

    def objective(self, stage: Stage, parts: Parts) -> Objective:
        """The objective with starting weights, drawn from torch's global generator."""


def names() -> list[str]:
    """All methods, sorted."""
    return sorted(_modules())


def read(name: str) -> Method:
    """The numbers of a method. Imports nothing heavy. BenchError for an unknown name or a mistake in the file."""
    path = _file(_module(name))
    method = parse(Method, {**read_toml(path), "name": name}, str(path))
    for stage, recipe in method.recipe.items():
        parse(Recipe, recipe, f"{path}: recipe.{stage}")
    return method


def load(name: str) -> MethodModule:
    """The code of a method."""
    return importlib.import_module(_module(name))  # type: ignore[return-value]


def _module(name: str) -> str:
    modules = _modules()
    if name not in modules:
        raise unknown("method", name, modules)
    return modules[name]


@cache
def _modules() -> dict[str, str]:
    """The module of each method, by the method's name; ours take precedence over those of other packages."""
    ours = {path.stem: f"{__name__}.{path.stem}" for path in Path(__file__).parent.glob("*.toml")}
    return {entry.name: entry.value for entry in entry_points(group="bench.methods")} | ours


def _file(module: str) -> Path:
    """NAME.toml beside the module, found without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise BenchError(f"the entry point of a method names {module}, which is not installed")
    return Path(spec.origin).with_suffix(".toml")
