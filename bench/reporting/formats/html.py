"""report.html: the whole report in one file that loads nothing else, with sortable tables and a print layout."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from bench.reporting.figures import svg
from bench.reporting.figures.charts import Chart
from bench.reporting.figures.style import DrawnFigure
from bench.reporting.formatting import ALIKE, MINUS, UNITS
from bench.reporting.markup import plain, spans
from bench.reporting.pages.document import Document, Figure

TEMPLATES = Path(__file__).parent / "templates"
MOST_BYTES = 2_900_000  # of the page; pictures that do not fit are left out and named
NUMBER = re.compile(rf"[+{MINUS}-]?\d[\d,]*(?:\.\d+)?(?: [{''.join(UNITS)}]\b)?")


def webpage(document: Document, most_bytes: int = MOST_BYTES) -> str:
    """The page. Pictures are embedded in reading order, as long as the page stays below `most_bytes`."""
    pictures = [block.drawn for block in document.blocks() if isinstance(block, Figure) and block.drawn.pictures]
    whole = _page(document, [drawn.name for drawn in pictures])
    room = most_bytes - len(whole.encode())
    if room >= 0:
        return whole
    room += sum(_embedded_bytes(drawn) for drawn in pictures)
    embedded = []
    for drawn in pictures:
        room -= _embedded_bytes(drawn)
        if room > 0:
            embedded.append(drawn.name)
    return _page(document, embedded)


def _embedded_bytes(drawn: DrawnFigure) -> int:
    return len(drawn.png) * 4 // 3 - 200  # base64 takes 4 bytes for 3; without it, a line names the file


def _page(document: Document, embedded: Collection[str]) -> str:
    template = _environment().get_template("report.html")
    style, script = (Markup((TEMPLATES / f"report.{kind}").read_text(encoding="utf-8")) for kind in ("css", "js"))
    return template.render(document=document, embedded=embedded, style=style, script=script)


def _environment() -> Environment:
    """Jinja that escapes every text and fails on a name that the template misspells."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "spans": spans, "plain": plain, "digest": _digest, "kind": lambda block: type(block).__name__,
        "base64": lambda data: base64.b64encode(data).decode(), "svgs": _svgs, "legend": svg.legend,
    }  # fmt: skip
    environment.globals["attributes"] = _attributes
    return environment


def _svgs(chart: Chart) -> list[Markup]:
    """The SVG elements of a chart, marked as safe: ElementTree has escaped their texts."""
    return [Markup(text) for text in svg.svgs(chart)]


def _digest(script: str) -> str:
    """The hash by which the content security policy admits the page's one script, and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _attributes(cell: str, number: bool) -> Markup:
    """The class of a cell, and the value by which the page sorts it."""
    kinds = ["number"] if number else []
    if any(span.bold for span in spans(cell)):
        kinds.append("worse" if plain(cell).startswith(MINUS) else "best")
    elif ALIKE in cell:
        kinds.append("alike")
    attributes = Markup(' class="{}"').format(" ".join(kinds)) if kinds else Markup("")
    value = sort_value(cell)
    return attributes if value is None else attributes + Markup(' data-value="{}"').format(escape(f"{value:g}"))


def sort_value(cell: str) -> float | None:
    """The first number of a cell that begins with one: '**71.20 +- 0.31** (2)' -> 71.2, '1.2 M' -> 1200000."""
    number = NUMBER.match(plain(cell).strip())
    if not number:
        return None
    digits, _, unit = number[0].replace(MINUS, "-").replace(",", "").partition(" ")
    return float(digits) * UNITS.get(unit, 1.0)
