"""Data sets: each file here is one, and says in `open_split` how a split of it is opened.

`open_split(split, root=None, **options)` returns a Source. Third parties add data sets without touching this
folder, as entry points of the group `bench.datasets` that lead to a module with the same function.
Nothing here imports torch, so that a plan can be made and printed quickly.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from bench import completeness, subsets
from bench.completeness import refuse
from bench.manifest import Manifest, listing, manifest
from bench.spec import Data, Expected, Scalar, unknown
from bench.subsets import labels, shuffled

__all__ = [
    "Sample",
    "Source",
    "describe",
    "foreseen",
    "known_options",
    "labels",
    "manifest_lines",
    "manifest_of",
    "names",
    "open_source",
    "root_of",
    "shortfall",
    "shuffled",
]

log = logging.getLogger(__name__)

NOT_SEEN = "not looked at"
Sample = dict[str, Any]  # "image": RGB picture; "label": int, -1 when there is none; "map": (H, W) uint8, if any


class Source(Protocol):
    """One split of a data set.

    A source may also have
    `root`         the folder it was found in;
    `labels()`     the classes of all its images, without reading a picture;
    `files()`      list[bench.manifest.Piece]: the bytes it is read from, all of them. A file of one picture (or its
                   label map) is a piece with the `index` of that image; a member of a tar shard is a range of it;
                   a file of many images (parquet, CIFAR's batches) and a table of labels are pieces of index -1.
                   A generated split has no files. `size` and `changed` are those of the listing, so that
                   1.28 million files are looked at once;
    `lacks`        what a list that came with the data names and is not there, a sentence each;
    `among`        the classes that may be answered, where a protocol asks for them (ImageNet-A, R);
    `label_sets()` (images, L): all labels of an image, -1 behind the last, where a protocol asks for them (ReaL);
    `unreadable`   dict: name -> reason of the pictures that were left out, because max_unreadable allowed it.
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
    labels: str = "",
) -> Source:
    """A split, ready to be read.

    labels: the part of it that may be learnt from, as `subsets.labelled` reads it. limit: a count (> 1) or a share
    (<= 1) of what that leaves, classes in balance.
    """
    given = dict(options or {})
    for key in given.keys() - known_options(dataset):
        raise unknown(f"option of data set {dataset}", key, known_options(dataset))
    module = _module(dataset)
    return _part(module.open_split(split, root=root, **given), labels, limit)


def known_options(dataset: str) -> set[str]:
    """What a data set can be told beyond its split and where it lies."""
    return set(inspect.signature(_module(dataset).open_split).parameters) - {"split", "root"}


def _part(source: Source, labels: str, limit: float | None) -> Source:
    learnt: Source = subsets.labelled(source, labels) if labels else source
    return learnt if limit is None or limit == 1 else subsets.limited(learnt, limit)


def describe(
    dataset: str,
    split: str,
    root: str | None = None,
    options: Mapping[str, Scalar] | None = None,
    limit: float | None = None,
    *,
    labels: str = "",
    expected: Expected | None = None,
    allow_incomplete: bool = False,
) -> Data:
    """What a split holds and where it lies, as a stage records it.

    Options that a data set names in `LOCAL_OPTIONS` (where pictures lie, how many may be unreadable) are left
    out: the identity covers what they lead to, and a stage's key must not change when a folder moves.
    Raises BenchError for a split that is not as `expected`, unless that is allowed.
    """
    options = dict(options or {})
    whole = open_source(dataset, split, root=root, options=options)
    told = shortfall(whole, expected, options)
    if told and not allow_incomplete:
        raise refuse(whole, told, root)
    if told:
        log.warning("%s/%s is not the published split, so results are not reportable: %s", dataset, split, told[0])
    source = _part(whole, labels, limit)
    local: frozenset[str] = getattr(_module(dataset), "LOCAL_OPTIONS", frozenset())
    return Data(
        dataset=dataset,
        split=split,
        identity=source.identity(),
        images=len(source),
        root=getattr(source, "root", root),
        options={key: value for key, value in options.items() if key not in local},
        limit=limit,
        labels=labels,
        manifest=root_of(source),
        incomplete=told[0] if told else "",
    )


def foreseen(
    dataset: str,
    split: str,
    root: str | None = None,
    options: Mapping[str, Scalar] | None = None,
    limit: float | None = None,
    *,
    labels: str = "",
    expected: Expected | None = None,
    allow_incomplete: bool = False,
) -> Data:
    """As `describe`, but published data that nobody has pointed at are taken to be there, complete: for plans only."""
    rule = subsets.parse_rule(labels or "100%")
    if root is not None or expected is None or not rule.share:
        given = {"labels": labels, "expected": expected, "allow_incomplete": allow_incomplete}
        return describe(dataset, split, root, options, limit, **given)  # type: ignore[arg-type]
    images = int(expected.images * rule.share / 100)
    if limit is not None:
        images = min(images, round(limit * (images if limit <= 1 else 1)))
    kept = {"dataset": dataset, "split": split, "identity": NOT_SEEN, "manifest": NOT_SEEN, "images": images}
    return Data.model_validate({**kept, "limit": limit, "labels": labels})


def shortfall(source: Source, expected: Expected | None, options: Mapping[str, Scalar]) -> list[str]:
    """In what a split differs from the published one; what is held out of it for choosing belongs to it."""
    lacks = list(getattr(source, "lacks", ()))
    if expected is None:
        return lacks
    if "minival_fraction" in options:
        left = {key: value for key, value in options.items() if key != "minival_fraction"}
        source = open_source(source.dataset, source.split, root=getattr(source, "root", None), options=left)
    return completeness.shortfall(source, expected) + lacks


def manifest_of(source: Source, anew: bool = False) -> Manifest | None:
    """The root hash of a split's files, from the cache unless they are to be read anew; None for data generated."""
    pieces = source.files() if hasattr(source, "files") else []
    return manifest(pieces, f"{source.dataset} {getattr(source, 'root', None)}", anew) if pieces else None


def manifest_lines(source: Source) -> list[str]:
    """Hash, size and name of every file of a split; none for data that are generated."""
    pieces = source.files() if hasattr(source, "files") else []
    return listing(pieces, f"{source.dataset} {getattr(source, 'root', None)}") if pieces else []


def root_of(source: Source) -> str:
    """The root hash of a split's files; '' for data that are generated."""
    found = manifest_of(source)
    return found.root if found else ""


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
