"""Reference curves: the loss and accuracy of published pretrainings, and warnings when a run is far from them.

`results/reference_curves.csv` gives a value and a band at a few epochs of a stage, each with its source; between them
the band is interpolated linearly. It applies to the same method, variant, size, data and number of epochs only.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from bench.config.stage import Stage
from bench.errors import BenchError
from bench.resources import shipped

SOURCE = re.compile(r"(arXiv \d{4}\.\d{4,5}|github\.com/\S+|huggingface\.co/\S+), \S")
NUMBERS = ("epochs", "epoch", "value", "low", "high")
EARLY = 0.05  # fraction of a stage before which there are no warnings: the first steps vary too much


@dataclass(frozen=True, slots=True)
class Reference:
    """A published value at an epoch, and the band of healthy values around it; one row of the table."""

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

    def applies_to(self, stage: Stage) -> bool:
        """Whether a stage trains the same thing on the same data for as long."""
        data, recipe = stage.data.get("train"), stage.recipe
        if data is None or recipe is None:
            return False
        mine = (self.method, self.variant, self.size, self.dataset, self.stage, self.epochs)
        return mine == (stage.method, stage.variant, stage.model.size, data.dataset, stage.kind, recipe.epochs)


COLUMNS = tuple(column.name for column in fields(Reference))


def default_path() -> Path:
    """The table that travels with bench."""
    return shipped("results/reference_curves.csv")


@cache
def read(path: Path) -> tuple[Reference, ...]:
    """The rows of a table. BenchError when it cannot be read; for a wrong line, the first is named."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.DictReader(file)
            if tuple(lines.fieldnames or ()) != COLUMNS:
                raise BenchError(f"{path}: the columns must be {', '.join(COLUMNS)}")
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
    row = Reference(**{**line, **numbers})  # type: ignore[arg-type]
    if not row.low <= row.value <= row.high:
        raise BenchError(f"{where}: {row.value:g} is outside its own band, {row.low:g} to {row.high:g}")
    return row


def of_stage(stage: Stage, rows: Sequence[Reference]) -> dict[str, list[Reference]]:
    """The references that apply to a stage, by metric, in the order of epochs."""
    by_metric: dict[str, list[Reference]] = {}
    for row in sorted((row for row in rows if row.applies_to(stage)), key=lambda row: row.epoch):
        by_metric.setdefault(row.metric, []).append(row)
    return by_metric


def band(references: Sequence[Reference], epoch: float) -> tuple[float, float]:
    """Lowest and highest healthy value at an epoch, interpolated; beyond the first and last epoch, theirs."""
    before = [row for row in references if row.epoch <= epoch] or [references[0]]
    after = [row for row in references if row.epoch >= epoch] or [references[-1]]
    left, right = before[-1], after[0]
    fraction = (epoch - left.epoch) / (right.epoch - left.epoch) if right.epoch > left.epoch else 0.0
    return left.low + fraction * (right.low - left.low), left.high + fraction * (right.high - left.high)


def deviation(references: Sequence[Reference], epoch: float, value: float) -> str:
    """A warning when a value is outside the band at an epoch; '' when it is inside, or it is too early to say."""
    if epoch < EARLY * references[0].epochs:
        return ""
    low, high = band(references, epoch)
    if low <= value <= high:
        return ""
    return (
        f"{references[0].metric} {value:.4g} at epoch {epoch:.4g} is {'below' if value < low else 'above'} the band of "
        f"known runs, {low:.4g} to {high:.4g} ({references[-1].source})"
    )


class Watch:
    """Compares a stage with its references while it trains; `warning` is the current one, '' when there is none."""

    def __init__(self, stage: Stage, path: Path | None = None) -> None:
        self.references = of_stage(stage, read(path or default_path()))
        self.warning = ""

    def look(self, epoch: float, values: Mapping[str, float]) -> str:
        """Update the warning. Returns it when there was none before, so that it is logged once, else ''."""
        texts = [deviation(rows, epoch, values[metric]) for metric, rows in self.references.items() if metric in values]
        is_new = not self.warning
        self.warning = "; ".join(text for text in texts if text)
        return self.warning if is_new else ""


def last_deviations(stage: Stage, curve: Iterable[tuple[str, float, float]], rows: Sequence[Reference]) -> list[str]:
    """The warnings at the end of a stage. curve: (metric, epoch, value) in the order of training."""
    last = {metric: (epoch, value) for metric, epoch, value in curve}
    texts = [deviation(band, *last[metric]) for metric, band in of_stage(stage, rows).items() if metric in last]
    return [text for text in texts if text]
