"""Whether a split is the published one: how many images it has, how many of each class, which are missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from bench.config.schema import Expected
from bench.data.subsets import labels
from bench.errors import BenchError, listed_up_to

if TYPE_CHECKING:
    from bench.data.source import Source

MOST_NAMES = 20  # of images or classes, in a message


def shortfall(source: Source, expected: Expected) -> list[str]:
    """How a split differs from the published one, a phrase each, its size first; [] when it does not."""
    differences = _wrong_names(source, expected) + _wrong_class_sizes(source, expected)
    if len(source) != expected.images or differences:
        return [f"{len(source):,} of {expected.images:,} images", *differences]
    return []


def incomplete_error(source: Source, differences: Sequence[str], where: str | None) -> BenchError:
    """The error for a split that is not the published one."""
    place = f" in {where}" if where else ""
    return BenchError(
        f"{source.dataset}/{source.split}{place} is not the published split: {'; '.join(differences)}. "
        "Complete the copy, or use it as it is with --allow-incomplete: results are then marked as not reportable"
    )


def _wrong_names(source: Source, expected: Expected) -> list[str]:
    """Names that are missing or too many, for a data set whose files are numbered."""
    if not expected.names:
        return []
    names = {PurePosixPath(source.name(index)).stem for index in range(len(source))}
    published = {expected.names.format(number): number for number in range(1, expected.images + 1)}
    missing = [number for name, number in published.items() if name not in names]
    if len(missing) == len(published):
        return []  # the copy names its images in another way, as some shards do: only counts can be compared
    extra = sorted(names.difference(published))
    return [*_phrase("missing", _runs(missing, expected.names)), *_phrase("not of it", extra)]


def _runs(numbers: Sequence[int], names: str) -> list[str]:
    """Ascending numbers as names, consecutive ones together: 'a_03', 'a_07 to a_09'."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        first = runs.pop()[0] if runs and runs[-1][1] == number - 1 else number
        runs.append((first, number))
    return [
        names.format(first) if first == last else f"{names.format(first)} to {names.format(last)}"
        for first, last in runs
    ]


def _wrong_class_sizes(source: Source, expected: Expected) -> list[str]:
    """Classes with fewer or more images than any class of the published split has."""
    if not expected.per_class or not source.classes:
        return []
    fewest, most = expected.per_class
    images_of = Counter(labels(source))
    counts = {name: images_of[label] for label, name in enumerate(source.classes)}
    usual = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    few = [f"{name} ({count:,})" for name, count in counts.items() if count < fewest]
    many = [f"{name} ({count:,})" for name, count in counts.items() if count > most]
    return [*_phrase(f"classes with fewer than {usual}", few), *_phrase(f"classes with more than {usual}", many)]


def _phrase(what: str, names: Sequence[str]) -> list[str]:
    return [f"{what}: {listed_up_to(names, MOST_NAMES)}"] if names else []
