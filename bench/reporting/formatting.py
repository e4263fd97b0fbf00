"""Numbers and names as text for people, and names escaped so that none can break Markdown or HTML."""

from __future__ import annotations

import hashlib
import html
import math
import re
from collections.abc import Mapping, Sequence

PLUS_MINUS, MINUS, NO_VALUE = "\u00b1", "\u2212", "\u2013"
ALIKE = "\u2248"  # behind a score or a difference: statistically not distinguishable
UNITS = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
LONGEST_NAME = 60
METRICS = {"top1": "top-1", "top5": "top-5", "mIoU": "mIoU", "mAcc": "mAcc", "aAcc": "aAcc"}


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """`name` on one line of at most `longest` characters; a cut name ends in a digest, so that names stay distinct."""
    line = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    if len(line) <= longest:
        return line
    return f"{line[: longest - 8]}...{hashlib.blake2b(name.encode(), digest_size=2).hexdigest()}"


def escaped(text: str, longest: int = LONGEST_NAME) -> str:
    """A name for Markdown: shown as it is, never read as markup or as HTML."""
    line = html.escape(shortened(text, longest), quote=False)
    marked = re.sub(r"([\\`*_{}\[\]#!|~$@])", r"\\\1", line)
    return marked.replace("://", ":&#47;&#47;")  # else GitHub makes a link of every address


def slug(name: str) -> str:
    """A file name that says `name`: lower-case letters, digits and dashes; a changed name ends in a digest."""
    safe = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return safe if safe == name else f"{safe or 'x'}-{hashlib.blake2b(name.encode(), digest_size=3).hexdigest()}"


def metric_name(metric: str) -> str:
    """'top1_ema' -> 'top-1 (ema)'."""
    base, _, rest = metric.partition("_")
    return METRICS.get(base, base) + (f" ({rest.replace('_', ' ')})" if rest else "")


def points(value: float, decimals: int = 2) -> str:
    """A difference with its sign: '+2.10'."""
    digits = f"{abs(value):.{decimals}f}"
    sign = "" if float(digits) == 0 else "+" if value > 0 else MINUS  # -0.001 is 0.00, not -0.00
    return sign + digits


def amount(value: float) -> str:
    """A count or a cost in three digits: 1.23 M, 0.0451, 12.3 k."""
    if math.isnan(value):
        return NO_VALUE
    for unit, size in reversed(UNITS.items()):
        if abs(value) >= 0.9995 * size:  # 999.6 in three digits is 1 k, not 1000
            return f"{_three_digits(value / size)} {unit}"
    return _three_digits(value)


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value)) + 1e-9))  # log10 of 1000 may fall just short of 3
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def p_value(p: float) -> str:
    """'p = 0.031' or 'p < 0.001'."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def listed(names: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def markdown_table(rows: Sequence[Mapping[str, str]], numbers: Sequence[str] = ()) -> str:
    """Rows with the same keys as a GitHub table; the columns named in `numbers` are set to the right."""
    if not rows:
        return ""
    columns = list(rows[0])
    rule = ["--:" if column in numbers else ":--" for column in columns]
    lines = [columns, rule, *[[row[column] for column in columns] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
