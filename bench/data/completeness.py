"""Whether a split is the published one: how many images it has, how many of each class, which are missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from bench.config.schema import Expected
from bench.data.subsets import labels
from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.data.source import Source

NAMED = 20  # images and classes that a message names


def shortfall(source: Source, expected: Expected) -> list[str]:
    """In what a split differs from the published one, a sentence each, the first being its size; [] if in nothing."""
    found = len(source)
    told = _numbers(source, expected) + _classes(source, expected)
    if found != expected.images or told:
        return [f"{found:,} of {expected.images:,} images", *told]
    return []


def refuse(source: Source, told: Sequence[str], where: str | None) -> BenchError:
    """The error for a split that is not complete."""
    place = f" in {where}" if where else ""
    return BenchError(
        f"{source.dataset}/{source.split}{place} is not the published split: {'; '.join(told)}. "
        "Complete the copy, or go on with --allow-incomplete: results are then marked as not reportable"
    )


def _numbers(source: Source, expected: Expected) -> list[str]:
    """Names that are missing, where files are numbered and this source keeps their names."""
    if not expected.names:
        return []
    here = {PurePosixPath(source.name(index)).stem for index in range(len(source))}
    wanted = {expected.names.format(number): number for number in range(1, expected.images + 1)}
    missing = [number for name, number in wanted.items() if name not in here]
    if len(missing) == len(wanted):
        return []  # named in another way, as in some shards: then counts must do
    extra = sorted(here.difference(wanted))
    return [*_named("missing", _runs(missing, expected.names)), *_named("not of it", extra)]


def _runs(numbers: Sequence[int], names: str) -> list[str]:
    """Names of ascending numbers, those without a gap between them together: 'a_03', 'a_07 to a_09'."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        first = runs.pop()[0] if runs and runs[-1][1] == number - 1 else number
        runs.append((first, number))
    return [
        names.format(first) if first == last else f"{names.format(first)} to {names.format(last)}"
        for first, last in runs
    ]


def _classes(source: Source, expected: Expected) -> list[str]:
    """Classes with fewer or more images than any class has."""
    if not expected.per_class or not source.classes:
        return []
    fewest, most = expected.per_class
    held = Counter(labels(source))
    counts = {name: held[label] for label, name in enumerate(source.classes)}
    usual = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    few = [f"{name} ({count:,})" for name, count in counts.items() if count < fewest]
    many = [f"{name} ({count:,})" for name, count in counts.items() if count > most]
    return [*_named(f"classes with fewer than {usual}", few), *_named(f"classes with more than {usual}", many)]


def _named(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return [f"{what}: {', '.join(names[:NAMED])}{more}"]
