"""Curves that others saw: what loss and accuracy a healthy pretraining has, and when one is far from it.

`results/reference_curves.csv` gives a value and a band at a few epochs of a stage, each with its source; between them
the band is drawn by straight lines. It holds for the same method, variant, size, data and number of epochs only.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from bench.config.stage import Stage
from bench.errors import BenchError
from bench.resources import shipped

SOURCE = re.compile(r"(arXiv \d{4}\.\d{4,5}|github\.com/\S+|huggingface\.co/\S+), \S")
NUMBERS = ("epochs", "epoch", "value", "low", "high")
SETTLED = 0.05  # share of a stage before which nothing is said: the first steps are wild


class Reference(NamedTuple):
    """One value that somebody saw at an epoch, and the band that a run should keep to."""

    method: str
    variant: str
    size: str
    dataset: str
    stage: str
    epochs: float  # of the whole stage
    metric: str
    epoch: float
    value: float
    low: float
    high: float
    conditions: str
    source: str


def default_path() -> Path:
    """The table that travels with bench."""
    return shipped("results/reference_curves.csv")


@cache
def read(path: Path) -> tuple[Reference, ...]:
    """All rows of a table; BenchError when there is none, or names the line of the first one that is wrong."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.DictReader(file)
            if tuple(lines.fieldnames or ()) != Reference._fields:
                raise BenchError(f"{path}: the columns must be {', '.join(Reference._fields)}")
            return tuple(_row(line, f"{path}, line {lines.line_num}") for line in lines)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BenchError(f"{path}: {error}") from None


def _row(line: Mapping[str, str | None], where: str) -> Reference:
    try:
        numbers = {name: float(str(line[name])) for name in NUMBERS}
    except ValueError as error:
        raise BenchError(f"{where}: {error}") from None
    if not SOURCE.match(str(line["source"])):
        raise BenchError(f"{where}: source {line['source']!r} names no paper or file")
    found = Reference(**{**line, **numbers})  # type: ignore[arg-type]
    if not found.low <= found.value <= found.high:
        raise BenchError(f"{where}: {found.value:g} is outside its own band, {found.low:g} to {found.high:g}")
    return found


def of_stage(stage: Stage, rows: Sequence[Reference]) -> dict[str, list[Reference]]:
    """The references that hold for a stage, by metric, in the order of epochs."""
    data = stage.data.get("train")
    if stage.recipe is None or data is None:
        return {}
    here = (stage.method, stage.variant, stage.model.size, data.dataset, stage.kind, stage.recipe.epochs)
    found: dict[str, list[Reference]] = {}
    for row in sorted((row for row in rows if row[:6] == here), key=lambda row: row.epoch):
        found.setdefault(row.metric, []).append(row)
    return found


def band(references: Sequence[Reference], epoch: float) -> tuple[float, float]:
    """Lowest and highest healthy value at an epoch; outside the known epochs that of the nearest one."""
    before = [row for row in references if row.epoch <= epoch] or [references[0]]
    after = [row for row in references if row.epoch >= epoch] or [references[-1]]
    one, other = before[-1], after[0]
    share = (epoch - one.epoch) / (other.epoch - one.epoch) if other.epoch > one.epoch else 0.0
    return one.low + share * (other.low - one.low), one.high + share * (other.high - one.high)


def deviation(references: Sequence[Reference], epoch: float, value: float) -> str:
    """A sentence when a value is outside the band at an epoch; '' when it is not, or too early to say."""
    if epoch < SETTLED * references[0].epochs:
        return ""
    low, high = band(references, epoch)
    if low <= value <= high:
        return ""
    return (
        f"{references[0].metric} {value:.4g} at epoch {epoch:.4g} is {'below' if value < low else 'above'} the band of "
        f"known runs, {low:.4g} to {high:.4g} ({references[-1].source})"
    )


class Watch:
    """Looks at a stage while it trains; `warning` is what stands against it now, '' when nothing does."""

    def __init__(self, stage: Stage, path: Path | None = None) -> None:
        self.references = of_stage(stage, read(path or default_path()))
        self.warning = ""

    def look(self, epoch: float, values: Mapping[str, float]) -> str:
        """The warnings of this look; those that did not stand before, to be logged."""
        found = [deviation(rows, epoch, values[metric]) for metric, rows in self.references.items() if metric in values]
        began = not self.warning
        self.warning = "; ".join(text for text in found if text)
        return self.warning if began else ""


def last_deviations(stage: Stage, seen: Iterable[tuple[str, float, float]], rows: Sequence[Reference]) -> list[str]:
    """What stands against a stage at its end: `seen` are (metric, epoch, value) in the order of training."""
    latest = {metric: (epoch, value) for metric, epoch, value in seen}
    found = [deviation(of, *latest[metric]) for metric, of in of_stage(stage, rows).items() if metric in latest]
    return [text for text in found if text]
