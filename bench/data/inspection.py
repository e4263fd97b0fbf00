"""Inspection of a task's data on this disk: how many images, how large, which are damaged, whether any are missing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from bench.config.schema import Task
from bench.data import splits
from bench.data.datasets import known_options
from bench.data.scan_progress import counter
from bench.data.source import Source
from bench.data.splits import SplitRequest
from bench.errors import BenchError

ANY_NUMBER = 10**9  # of unreadable images, when every one of them is to be named
CHUNK = 32  # images that one thread decodes at a time


@dataclass(frozen=True, slots=True)
class TaskSplit:
    """A split of a task: the roles it plays, and how it is opened."""

    task: Task
    roles: tuple[str, ...]
    request: SplitRequest

    @property
    def name(self) -> str:
        """'imagenet1k/val'."""
        return f"{self.task.name}/{self.request.split}"

    def open(self, lenient: bool = False) -> Source:
        """Open the split; `lenient` leaves out all images that cannot be read, if the data set has that option."""
        options = dict(self.request.options)
        if lenient and "max_unreadable" in known_options(self.task.dataset):
            options.setdefault("max_unreadable", ANY_NUMBER)
        return splits.open_source(replace(self.request, options=options))


def task_splits(task: Task, roots: Mapping[str, str], unlabelled: str = "") -> list[TaskSplit]:
    """The splits of a task, each once."""
    root = roots.get(task.name) or roots.get("") or roots.get(task.evaluates) or None
    splits_of_task: dict[str, TaskSplit] = {}
    for role, split in task.splits.items():
        path = {"path": unlabelled} if unlabelled and role == "pretrain" else {}
        request = SplitRequest(task.dataset, split, root, {**task.options, **path}, expected=task.expects.get(split))
        same = splits_of_task.get(split)
        if same is not None and same.request == request:
            splits_of_task[split] = replace(same, roles=(*same.roles, role))
        else:  # a second request for the same split: pretraining reads a folder of its own
            splits_of_task[f"{split} {role}" if same else split] = TaskSplit(task, (role,), request)
    return list(splits_of_task.values())


@dataclass(frozen=True, slots=True)
class InspectedSplit:
    """What a split holds. With any `problems`, a sentence each, results on it are not reportable."""

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
    widths: tuple[int, int, int] | None = None  # of the decoded images: smallest, median, largest; in pixels
    heights: tuple[int, int, int] | None = None
    damaged: dict[str, str] = field(default_factory=dict)  # name -> reason
    problems: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {item.name: getattr(self, item.name) for item in fields(self)} | {"ok": not self.problems}


def inspect(split: TaskSplit, decode: int | None) -> InspectedSplit:
    """Inspect a split. decode: how many images are decoded, spread evenly; None for all of them."""
    inspected = InspectedSplit(split.name, split.roles)
    try:
        source = _open(split, every_image=decode is None)
        manifest = splits.manifest_of(source)
        expected = split.request.expected
        problems = splits.shortfall(source, split.request)
    except BenchError as error:
        return replace(inspected, problems=(str(error),))
    sizes, damaged = _decode_images(source, decode)
    damaged = {**getattr(source, "unreadable", {}), **damaged}
    if damaged:
        problems = [*problems, f"{len(damaged):,} images cannot be read"]
    return replace(
        inspected,
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
        problems=tuple(problems),
    )


def _open(split: TaskSplit, every_image: bool) -> Source:
    """Open a split; if it refuses because of unreadable images, without them, so that they can be named."""
    try:
        return split.open(lenient=every_image)
    except BenchError:
        return split.open(lenient=True)  # raises again when the images were not the reason


def _per_class(source: Source) -> tuple[int, int] | None:
    if not source.classes or not hasattr(source, "labels"):
        return None
    images_of = Counter(source.labels())
    counts = [images_of[label] for label in getattr(source, "among", range(len(source.classes)))]
    return (min(counts), max(counts)) if any(counts) else None


def _decode_images(source: Source, decode: int | None) -> tuple[list[tuple[int, int]], dict[str, str]]:
    """Width and height of the images that decode; name -> reason of those that do not."""
    number = len(source) if decode is None else min(decode, len(source))
    if not number:
        return [], {}
    chosen = np.linspace(0, len(source) - 1, number).round().astype(int).tolist()
    chunks = [chosen[start : start + CHUNK] for start in range(0, number, CHUNK)]
    sizes: list[tuple[int, int]] = []
    damaged: dict[str, str] = {}
    _size_or_reason(source, chosen[0])  # so that what a source does at its first image is not done by every thread
    with ThreadPoolExecutor(os.cpu_count()) as threads, counter(f"decoding {source.split}", number) as count:
        parts = threads.map(lambda chunk: [_size_or_reason(source, index) for index in chunk], chunks)
        for chunk, results in zip(chunks, parts, strict=True):
            count.advance(len(chunk))
            sizes += [size for size in results if isinstance(size, tuple)]
            damaged |= {source.name(i): why for i, why in zip(chunk, results, strict=True) if isinstance(why, str)}
    return sizes, damaged


def _size_or_reason(source: Source, index: int) -> tuple[int, int] | str:
    """Width and height of an image, or why it cannot be read."""
    try:
        return source[index]["image"].size
    except Exception as error:  # a decoder may raise anything on damaged bytes, and all of it is to be reported
        return str(error)


def _spread(sizes: list[tuple[int, int]], axis: int) -> tuple[int, int, int] | None:
    values = [size[axis] for size in sizes]
    return (min(values), int(np.median(values)), max(values)) if values else None
