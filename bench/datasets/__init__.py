"""Data sets: each file here is one, and says in `open_split` how a split of it is opened.

`open_split(split, root=None, **options)` returns a Source. Third parties add data sets without touching this
folder, as entry points of the group `bench.datasets` that lead to a module with the same function.
Nothing here imports torch, so that a plan can be made and printed quickly.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from bench.spec import BenchError, Data, Scalar, digest, unknown

Sample = dict[str, Any]  # "image": RGB picture; "label": int, -1 when there is none; "map": (H, W) uint8, if any


class Source(Protocol):
    """One split of a data set.

    A source may also have `labels()`, the classes of all its images without reading a picture, and `root`,
    the folder it was found in.
    """

    dataset: str
    split: str
    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def name(self, index: int) -> str:
        """Identifier of an image, unique in its split and the same on every machine."""
        ...

    def identity(self) -> str:
        """Hash of what the split holds, and not of where it lies."""
        ...


def names() -> list[str]:
    """The data sets there are: files of this folder and installed entry points."""
    files = [path.stem for path in Path(__file__).parent.glob("[!_]*.py")]
    return sorted({*files, *(entry.name for entry in _installed())})


def open_source(
    dataset: str,
    split: str,
    *,
    root: str | None = None,
    options: Mapping[str, Scalar] | None = None,
    limit: float | None = None,
) -> Source:
    """A split, ready to be read; `limit` keeps a count (> 1) or a share (<= 1) of it, classes in balance."""
    module = _module(dataset)
    given = dict(options or {})
    known = set(inspect.signature(module.open_split).parameters) - {"split", "root"}
    for key in given.keys() - known:
        raise unknown(f"option of data set {dataset}", key, known)
    source: Source = module.open_split(split, root=root, **given)
    return source if limit is None or limit == 1 else Subset(source, limit)


def describe(
    dataset: str,
    split: str,
    root: str | None = None,
    options: Mapping[str, Scalar] | None = None,
    limit: float | None = None,
) -> Data:
    """What a split holds and where it lies, as a stage records it.

    Options that a data set names in `LOCAL_OPTIONS` (where pictures lie, how many may be unreadable) are left
    out: the identity covers what they lead to, and a stage's key must not change when a folder moves.
    """
    source = open_source(dataset, split, root=root, options=options, limit=limit)
    local: frozenset[str] = getattr(_module(dataset), "LOCAL_OPTIONS", frozenset())
    return Data(
        dataset=dataset,
        split=split,
        identity=source.identity(),
        images=len(source),
        root=getattr(source, "root", root),
        options={key: value for key, value in (options or {}).items() if key not in local},
        limit=limit,
    )


def labels(source: Source) -> Sequence[int]:
    """The class of every image of a source; sources that cannot tell cheaply are read through."""
    cheap = getattr(source, "labels", None)
    return cheap() if cheap else [source[index]["label"] for index in range(len(source))]


class Subset:
    """A part of a source, always the same part, its classes represented alike."""

    def __init__(self, source: Source, limit: float) -> None:
        if limit <= 0:
            raise BenchError(f"limit = {limit:g}: give a count above 1, or a share of the images up to 1")
        self._source, self._limit = source, float(limit)
        self._classes_of = labels(source)
        wanted = int(limit) if limit > 1 else max(1, round(limit * len(source)))
        self._indices = _balanced(source, self._classes_of, wanted)
        self.dataset, self.split, self.classes = source.dataset, source.split, source.classes
        self.root: str | None = getattr(source, "root", None)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._source[self._indices[index]]

    def name(self, index: int) -> str:
        """Identifier of an image, as in the whole split."""
        return self._source.name(self._indices[index])

    def labels(self) -> Sequence[int]:
        """The class of every image."""
        return [self._classes_of[index] for index in self._indices]

    def identity(self) -> str:
        """Hash of what the part holds."""
        return digest(["subset", self._source.identity(), self._limit])


def shuffled(names_: Sequence[str]) -> list[int]:
    """Positions of the names in an order that is arbitrary, but the same everywhere and for ever."""
    return sorted(range(len(names_)), key=lambda i: hashlib.blake2b(names_[i].encode(), digest_size=8).digest())


def _balanced(source: Source, classes_of: Sequence[int], wanted: int) -> list[int]:
    """`wanted` indices in ascending order: the first of each class, then the second of each class, and so on."""
    order = shuffled([source.name(index) for index in range(len(source))])
    seen: dict[int, int] = {}
    rounds = []
    for index in order:
        turn = seen.get(classes_of[index], 0)
        seen[classes_of[index]] = turn + 1
        rounds.append((turn, index))
    rounds.sort(key=lambda item: item[0])  # stable: within a round the arbitrary order stays
    return sorted(index for _, index in rounds[:wanted])


@cache
def _module(dataset: str) -> ModuleType:
    """The module of a data set, from this folder or from an entry point."""
    if (Path(__file__).parent / f"{dataset}.py").exists() and not dataset.startswith("_"):
        return importlib.import_module(f"bench.datasets.{dataset}")
    for entry in _installed():
        if entry.name == dataset:
            return entry.load()
    raise unknown("data set", dataset, names())


def _installed() -> Any:
    return entry_points(group="bench.datasets")
