"""What the data of a task are on this disk: how many, how large, which are damaged, whether any are missing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from bench.config.schema import Task
from bench.data import splits
from bench.data.datasets import known_options
from bench.data.scan_progress import counter
from bench.data.source import Source
from bench.data.splits import SplitRequest
from bench.errors import BenchError

ANY_NUMBER = 10**9  # of unreadable pictures, where each of them is to be named
CHUNK = 32  # pictures that one thread decodes at a time


class Place(NamedTuple):
    """A split of a task: the roles it plays, and how it is opened."""

    task: Task
    roles: tuple[str, ...]
    request: SplitRequest

    @property
    def name(self) -> str:
        """'imagenet1k/val'."""
        return f"{self.task.name}/{self.request.split}"

    def open(self, lenient: bool = False) -> Source:
        """The split; `lenient` leaves out pictures that cannot be read, however many, where the data set can."""
        options = dict(self.request.options)
        if lenient and "max_unreadable" in known_options(self.task.dataset):
            options.setdefault("max_unreadable", ANY_NUMBER)
        return splits.open_source(replace(self.request, options=options))


def places(task: Task, roots: Mapping[str, str], unlabelled: str = "") -> list[Place]:
    """The splits of a task, each once."""
    root = roots.get(task.name) or roots.get("") or roots.get(task.evaluates) or None
    found: dict[str, Place] = {}
    for role, split in task.splits.items():
        path = {"path": unlabelled} if unlabelled and role == "pretrain" else {}
        request = SplitRequest(task.dataset, split, root, {**task.options, **path}, expected=task.expects.get(split))
        same = found.get(split)
        if same is not None and same.request == request:
            found[split] = same._replace(roles=(*same.roles, role))
        else:
            found[f"{split} {role}" if same else split] = Place(task, (role,), request)
    return list(found.values())


class InspectedSplit(NamedTuple):
    """What a split was found to hold; `problems` are sentences, and then it is not fit to be reported on."""

    name: str
    roles: tuple[str, ...]
    images: int = 0
    expected: int | None = None
    classes: int = 0
    per_class: tuple[int, int] | None = None  # images of the smallest class and of the largest one
    files: int = 0
    bytes: int = 0
    root_hash: str = ""
    decoded: int = 0
    widths: tuple[int, int, int] | None = None  # of the pictures decoded: smallest, median, largest; in pixels
    heights: tuple[int, int, int] | None = None
    damaged: dict[str, str] = {}  # noqa: RUF012 - name -> why
    problems: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {**self._asdict(), "ok": not self.problems}


def inspect(place: Place, decode: int | None) -> InspectedSplit:
    """Look at a split. decode: how many pictures are decoded, spread evenly; None: all of them."""
    start = InspectedSplit(place.name, place.roles)
    try:
        source = _opened(place, every_picture=decode is None)
        manifest = splits.manifest_of(source)
        expected = place.request.expected
        told = splits.shortfall(source, place.request)
    except BenchError as error:
        return start._replace(problems=(str(error),))
    sizes, damaged = _decoded(source, decode)
    damaged = {**getattr(source, "unreadable", {}), **damaged}
    if damaged:
        told = [*told, f"{len(damaged):,} pictures cannot be read"]
    return start._replace(
        images=len(source),
        expected=expected.images if expected else None,
        classes=len(getattr(source, "among", source.classes)),
        per_class=_per_class(source),
        files=manifest.files if manifest else 0,
        bytes=manifest.bytes if manifest else 0,
        root_hash=manifest.root if manifest else "",
        decoded=len(sizes) + len(damaged),
        widths=_spread(sizes, 0),
        heights=_spread(sizes, 1),
        damaged=damaged,
        problems=tuple(told),
    )


def _opened(place: Place, every_picture: bool) -> Source:
    """A split, with the names of the pictures that it cannot read where it has to leave some out."""
    try:
        return place.open(lenient=every_picture)
    except BenchError:
        return place.open(lenient=True)  # says why, unless it was the pictures


def _per_class(source: Source) -> tuple[int, int] | None:
    if not source.classes or not hasattr(source, "labels"):
        return None
    held = Counter(source.labels())
    counts = [held[label] for label in getattr(source, "among", range(len(source.classes)))]
    return (min(counts), max(counts)) if any(counts) else None


def _decoded(source: Source, decode: int | None) -> tuple[list[tuple[int, int]], dict[str, str]]:
    """Width and height of the pictures that were decoded, and why others could not be."""
    number = len(source) if decode is None else min(decode, len(source))
    if not number:
        return [], {}
    chosen = np.linspace(0, len(source) - 1, number).round().astype(int).tolist()
    chunks = [chosen[start : start + CHUNK] for start in range(0, number, CHUNK)]
    sizes: list[tuple[int, int]] = []
    damaged: dict[str, str] = {}
    _try(source, chosen[0])  # what a source does once, it does before there are many threads
    with ThreadPoolExecutor(os.cpu_count()) as threads, counter(f"decoding {source.split}", number) as count:
        for chunk, found in zip(chunks, threads.map(lambda part: [_try(source, i) for i in part], chunks), strict=True):
            count.advance(len(chunk))
            sizes += [one for one in found if isinstance(one, tuple)]
            damaged |= {source.name(i): one for i, one in zip(chunk, found, strict=True) if isinstance(one, str)}
    return sizes, damaged


def _try(source: Source, index: int) -> tuple[int, int] | str:
    """Size of a picture, or why it cannot be read."""
    try:
        return source[index]["image"].size
    except Exception as error:  # whatever a decoder raises is what this is here to tell
        return str(error)


def _spread(sizes: list[tuple[int, int]], axis: int) -> tuple[int, int, int] | None:
    values = [size[axis] for size in sizes]
    return (min(values), int(np.median(values)), max(values)) if values else None
