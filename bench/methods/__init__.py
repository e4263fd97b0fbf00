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

View = Callable[[dict[str, Any]], dict[str, Any]]  # a sample as the objective wants it, in a loader's worker
Parts = dict[str, Any]  # networks of earlier stages, loaded, by role: tokenizer, teacher


class MethodModule(Protocol):
    """What NAME.py has: the views and the objective of the stages that are the method's own."""

    def view(self, stage: Stage) -> View: ...

    def objective(self, stage: Stage, parts: Parts) -> Objective: ...


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
    """Method -> module that holds its code."""
    ours = {path.stem: f"{__name__}.{path.stem}" for path in Path(__file__).parent.glob("*.toml")}
    return {entry.name: entry.value for entry in entry_points(group="bench.methods")} | ours


def _file(module: str) -> Path:
    """NAME.toml beside the module, found without importing it."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise BenchError(f"the entry point of a method names {module}, which is not installed")
    return Path(found.origin).with_suffix(".toml")
