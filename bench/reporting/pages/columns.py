"""From pandas frames to rows of text: which columns are shown, under which heading, in which format."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from bench.reporting.formatting import NO_VALUE, PLUS_MINUS, amount, escaped, p_value, points

LONGEST_TEXT = 400
Format = Callable[[Any], str]


def of_task(frame: pd.DataFrame, task: str) -> pd.DataFrame:
    """The rows of a frame that belong to a task."""
    return frame[frame["task"] == task]


def rows(frame: pd.DataFrame, columns: Mapping[str, tuple[str, Format]]) -> list[dict[str, str]]:
    """A row of text for every row of the frame. columns: column of the frame -> heading and format."""
    records = frame.to_dict("records")
    return [{heading: write(row[column]) for column, (heading, write) in columns.items()} for row in records]


def name(value: Any) -> str:
    """A name, escaped."""
    return escaped(str(value)) if _has_value(value) else NO_VALUE


def text(value: Any) -> str:
    """A longer text, escaped."""
    return escaped(str(value), LONGEST_TEXT) if _has_value(value) else NO_VALUE


def score(value: Any) -> str:
    """A score in percent, with two decimals."""
    return f"{value:.2f}" if _has_value(value) else NO_VALUE


def difference(value: Any) -> str:
    """A difference in points, with its sign."""
    return points(float(value)) if _has_value(value) else NO_VALUE


def count(value: Any) -> str:
    """An integer."""
    return f"{int(value)}" if _has_value(value) else NO_VALUE


def cost(value: Any) -> str:
    """An amount with three digits and a unit prefix."""
    return amount(float(value)) if _has_value(value) else NO_VALUE


def probability(value: Any) -> str:
    """A p value."""
    return p_value(float(value)) if _has_value(value) else NO_VALUE


def between(low: Any, high: Any, write: Format = score) -> str:
    """'70.10 to 73.20'."""
    return f"{write(low)} to {write(high)}" if _has_value(low) and _has_value(high) else NO_VALUE


def with_interval(value: Any, low: Any, high: Any, write: Format) -> str:
    """'12.3 k (11.9 k to 12.7 k)'; the value alone where no interval is known."""
    interval = between(low, high, write)
    return write(value) if interval == NO_VALUE else f"{write(value)} ({interval})"


def plus_minus(value: Any, high: Any) -> str:
    """'12.3 k +- 0.4 k': an amount with half of its interval, where that is known."""
    half = f" {PLUS_MINUS} {amount(high - value)}" if _has_value(high) else ""
    return f"{amount(float(value))}{half}" if _has_value(value) else NO_VALUE


def _has_value(value: Any) -> bool:
    return value is not None and value != "" and not (isinstance(value, float) and math.isnan(value))
