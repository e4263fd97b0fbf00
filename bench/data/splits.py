"""Opening a split: its images by index, the part of it that is used, what it holds (`Data`), and its root hash."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bench.config.schema import Expected, Scalar
from bench.config.stage import Data
from bench.data import completeness, subsets
from bench.data.completeness import incomplete_error
from bench.data.datasets import known_options, load_module
from bench.data.manifest import Manifest, listing, manifest
from bench.data.source import Source
from bench.errors import unknown

log = logging.getLogger(__name__)

NOT_SEEN = "not looked at"


@dataclass(frozen=True, slots=True)
class SplitRequest:
    """A split of a data set, where it is, and the part of it that is used."""

    dataset: str
    split: str
    root: str | None = None
    options: Mapping[str, Scalar] = field(default_factory=dict)  # of the data set
    limit: float | None = None  # a count (> 1) or a share (<= 1) of what `labels` leaves, classes in balance
    labels: str = ""  # the labels that are used for training, as `labelled_subset` reads it
    expected: Expected | None = None  # what the published split holds
    allow_incomplete: bool = False  # also describe a split that is not as expected

    def whole(self) -> SplitRequest:
        """The same split with all its images."""
        return replace(self, limit=None, labels="")


def open_source(request: SplitRequest) -> Source:
    """A split, ready to be read. BenchError for an option that the data set does not have."""
    for key in request.options.keys() - known_options(request.dataset):
        raise unknown(f"option of data set {request.dataset}", key, known_options(request.dataset))
    module = load_module(request.dataset)
    return _part(module.open_split(request.split, root=request.root, **request.options), request)


def _part(source: Source, request: SplitRequest) -> Source:
    """The requested part of a whole split."""
    part: Source = subsets.labelled_subset(source, request.labels) if request.labels else source
    return part if request.limit is None or request.limit == 1 else subsets.limited_subset(part, request.limit)


def describe(request: SplitRequest) -> Data:
    """What a split holds and where it is, as a stage records it.

    Raises BenchError for a split that is not as expected, unless that is allowed.
    """
    whole = open_source(request.whole())
    differences = shortfall(whole, request)
    if differences and not request.allow_incomplete:
        raise incomplete_error(whole, differences, request.root)
    if differences:
        name = f"{request.dataset}/{request.split}"
        log.warning("%s is not the published split, so results are not reportable: %s", name, differences[0])
    source = _part(whole, request)
    # Options that say where images lie, or how many may be unreadable: the identity covers what they lead to, and a
    # stage's key must not change when a folder moves.
    local: frozenset[str] = getattr(load_module(request.dataset), "LOCAL_OPTIONS", frozenset())
    return Data(
        dataset=request.dataset,
        split=request.split,
        identity=source.identity(),
        images=len(source),
        root=getattr(source, "root", request.root),
        options={key: value for key, value in request.options.items() if key not in local},
        limit=request.limit,
        labels=request.labels,
        manifest=root_of(source),
        incomplete=differences[0] if differences else "",
    )


def describe_or_assume(request: SplitRequest) -> Data:
    """As `describe`, but a published split without a folder is assumed to be complete: for plans only."""
    rule = subsets.parse_rule(request.labels or "100%")
    if request.root is not None or request.expected is None or not rule.share:
        return describe(request)
    images = int(request.expected.images * rule.share / 100)
    if request.limit is not None:
        images = min(images, round(request.limit * (images if request.limit <= 1 else 1)))
    return Data(
        dataset=request.dataset,
        split=request.split,
        identity=NOT_SEEN,
        manifest=NOT_SEEN,
        images=images,
        limit=request.limit,
        labels=request.labels,
    )


def shortfall(source: Source, request: SplitRequest) -> list[str]:
    """How a split differs from the published one, a phrase each; [] when it does not."""
    lacks = list(getattr(source, "lacks", ()))
    if request.expected is None:
        return lacks
    if "minival_fraction" in request.options:  # what is held out for choosing belongs to the published split
        options = {key: value for key, value in request.options.items() if key != "minival_fraction"}
        source = open_source(SplitRequest(source.dataset, source.split, getattr(source, "root", None), options))
    return completeness.shortfall(source, request.expected) + lacks


def manifest_of(source: Source, anew: bool = False) -> Manifest | None:
    """The root hash of a split's files, from the cache unless `anew`; None for generated data."""
    pieces = source.files() if hasattr(source, "files") else []
    return manifest(pieces, f"{source.dataset} {getattr(source, 'root', None)}", anew) if pieces else None


def manifest_lines(source: Source) -> list[str]:
    """Hash, size and name of every file of a split; none for generated data."""
    pieces = source.files() if hasattr(source, "files") else []
    return listing(pieces, f"{source.dataset} {getattr(source, 'root', None)}") if pieces else []


def root_of(source: Source) -> str:
    """The root hash of a split's files; '' for generated data."""
    split_manifest = manifest_of(source)
    return split_manifest.root if split_manifest else ""
