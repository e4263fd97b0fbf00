"""From pandas frames to rows of text: which columns are shown, under which heading, in which form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from bench.reporting.formatting import NO_VALUE, PLUS_MINUS, amount, escaped, p_value, points

LONGEST_TEXT = 400
Form = Callable[[Any], str]


def rows(frame: pd.DataFrame, columns: Mapping[str, tuple[str, Form]]) -> list[dict[str, str]]:
    """A row of text for every row of the frame. columns: column -> heading and form; headings share no column."""
    return [
        {heading: form(row[column]) for column, (heading, form) in columns.items()} for row in frame.to_dict("records")
    ]


def name(value: Any) -> str:
    """A name, or a text from outside."""
    return escaped(str(value)) if _known(value) else NO_VALUE


def text(value: Any) -> str:
    """A longer text from outside."""
    return escaped(str(value), LONGEST_TEXT) if _known(value) else NO_VALUE


def score(value: Any) -> str:
    """A score in percent, with two decimals."""
    return f"{value:.2f}" if _known(value) else NO_VALUE


def difference(value: Any) -> str:
    """A difference in points, with its sign."""
    return points(float(value)) if _known(value) else NO_VALUE


def count(value: Any) -> str:
    """A whole number."""
    return f"{int(value)}" if _known(value) else NO_VALUE


def cost(value: Any) -> str:
    """An amount in three digits."""
    return amount(float(value)) if _known(value) else NO_VALUE


def probability(value: Any) -> str:
    """A p value."""
    return p_value(float(value)) if _known(value) else NO_VALUE


def between(low: Any, high: Any, form: Form = score) -> str:
    """'70.10 to 73.20'."""
    return f"{form(low)} to {form(high)}" if _known(low) and _known(high) else NO_VALUE


def with_interval(value: Any, low: Any, high: Any, form: Form) -> str:
    """'12.3 k (11.9 k to 12.7 k)'; the value alone where no interval is known."""
    shown = between(low, high, form)
    return form(value) if shown == NO_VALUE else f"{form(value)} ({shown})"


def plus_minus(value: Any, high: Any) -> str:
    """'12.3 k +- 0.4 k': an amount with half of its interval, where that is known."""
    half = f" {PLUS_MINUS} {amount(high - value)}" if _known(high) else ""
    return f"{amount(float(value))}{half}" if _known(value) else NO_VALUE


def _known(value: Any) -> bool:
    return value is not None and value != "" and not (isinstance(value, float) and math.isnan(value))
