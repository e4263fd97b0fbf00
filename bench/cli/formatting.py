"""Rows as aligned columns, numbers with a prefix, values as one would write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, str]


def aligned(rows: Sequence[Row]) -> str:
    """Rows as columns of text under their names; numbers to the right."""
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


def short(number: float, unit: str = "") -> str:
    """1234567 -> '1.23 M'; three digits and a prefix."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if abs(number) < 999.5:
            return f"{number:.3g} {prefix}{unit}".strip()
        number /= 1000
    return f"{number:.3g} Z{unit}"


def shown(value: Any) -> str:
    """A value as one would write it."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(shown(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
