"""Text for a terminal: tables with aligned columns, numbers with a unit prefix, values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, str]


def format_rows(rows: Sequence[Row]) -> str:
    """Rows as a table with aligned columns under their names; numbers to the right."""
    if not rows:
        return "none"
    columns = list(rows[0])
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    right = {name for name in columns if all(row[name][:1].isdigit() or row[name] in ("", "?") for row in rows)}
    lines = [
        "  ".join(row[name].rjust(widths[name]) if name in right else row[name].ljust(widths[name]) for name in columns)
        for row in [dict(zip(columns, columns, strict=True)), *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def format_number(number: float, unit: str = "") -> str:
    """A number with three digits and a unit prefix: 1234567 -> '1.23 M'."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if abs(number) < 999.5:  # 999.6 in three digits is 1 k
            return f"{number:.3g} {prefix}{unit}".strip()
        number /= 1000
    return f"{number:.3g} Z{unit}"


def format_value(value: Any) -> str:
    """A value as in a TOML file or on a command line: lists in brackets, no trailing zeros."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(format_value(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
