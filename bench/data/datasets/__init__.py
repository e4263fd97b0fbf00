"""The registry of data sets: each file here is one, with a function `open_split(split, root=None, **options)`.

A package adds a data set without touching this folder: an entry point of the group `bench.datasets` that leads to a
module with that function.
"""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.errors import unknown


def names() -> list[str]:
    """Names of all data sets: the files of this folder and the installed entry points."""
    files = [path.stem for path in Path(__file__).parent.glob("[!_]*.py")]
    return sorted({*files, *(entry.name for entry in _installed())})


def known_options(dataset: str) -> set[str]:
    """The options of a data set: what `open_split` takes besides split and root."""
    return set(inspect.signature(load_module(dataset).open_split).parameters) - {"split", "root"}


@cache  # looking up entry points reads the metadata of every installed package
def load_module(dataset: str) -> ModuleType:
    """The module of a data set, from this folder or from an entry point."""
    if (Path(__file__).parent / f"{dataset}.py").exists() and not dataset.startswith("_"):
        return importlib.import_module(f"bench.data.datasets.{dataset}")
    for entry in _installed():
        if entry.name == dataset:
            return entry.load()
    raise unknown("data set", dataset, names())


def _installed() -> Any:
    return entry_points(group="bench.datasets")
