"""Opening a split: its images by index, the part of it that is used, what it holds (`Data`), and its root hash."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from bench.config.schema import Expected, Scalar
from bench.config.stage import Data
from bench.data import completeness, subsets
from bench.data.completeness import refuse
from bench.data.datasets import _module, known_options
from bench.data.manifest import Manifest, listing, manifest
from bench.data.source import Source
from bench.errors import unknown

log = logging.getLogger(__name__)

NOT_SEEN = "not looked at"


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
