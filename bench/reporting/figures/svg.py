"""Charts as small SVGs inside a page: in the page's colours, light or dark, with tooltips that show the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from bench.reporting.figures.charts import Bar, Chart, Line, Panel, ticks
from bench.reporting.formatting import amount, shortened

COLOURS = 7  # CSS classes c0 to c6, as many as style.COLOURS
DASHES = ("", "6 3", "6 3 1 3", "8 2 1 2 1 2")
POINTS = 40  # of a curve that have a tooltip
CHARACTER = 6.2  # width in pixels of a letter at font size 11, to leave room for names
PANEL = (320.0, 230.0)
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 24.0, 42.0
WIDE, ROW = 720.0, 30.0


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear axis: from numbers between `low` and `high` to pixels between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a number."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.end - self.start), 1)


def svgs(chart: Chart) -> list[str]:
    """One SVG for bars, else one for every panel."""
    drawn = (
        [_bars(chart)] if chart.bars else [_panel(panel, f"{chart.name}, {panel.x_label}") for panel in chart.panels]
    )
    return [ElementTree.tostring(element, encoding="unicode") for element in drawn]


def legend(chart: Chart) -> list[tuple[str, str]]:
    """CSS class and name of every arm of a chart with panels."""
    lines = {line.label: line for panel in chart.panels for line in panel.lines}
    entries = [(colour(line.place), shortened(line.label)) for line in lines.values()]
    return entries if len({line.place for line in lines.values()}) > 1 else []  # else the panels' titles say it


def colour(place: int) -> str:
    """The CSS class that gives an arm its colour."""
    return f"c{place % COLOURS}" if place >= 0 else "reference"


def _root(width: float, height: float, description: str) -> Element:
    view = f"0 0 {width:g} {height:g}"
    root = Element("svg", viewBox=view, role="img", xmlns="http://www.w3.org/2000/svg")
    root.set("aria-label", shortened(description, 120))
    root.set("class", "wide" if width == WIDE else "panel")
    return root


def _text(parent: Element, x: float, y: float, text: str, anchor: str = "middle", kind: str = "") -> Element:
    element = SubElement(parent, "text", {"x": f"{x:g}", "y": f"{y:g}", "text-anchor": anchor})
    if kind:
        element.set("class", kind)
    element.text = text
    return element


def _line(parent: Element, ends: Sequence[float], kind: str = "") -> None:
    x1, y1, x2, y2 = (f"{end:g}" for end in ends)
    SubElement(parent, "line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": kind})


def _shape(parent: Element, tag: str, tooltip: str, **attributes: object) -> None:
    """A shape with a tooltip."""
    shape = SubElement(parent, tag, {name.replace("_", "-"): f"{value}" for name, value in attributes.items()})
    SubElement(shape, "title").text = tooltip


def _bars(chart: Chart) -> Element:
    """A bar per row, from top to bottom."""
    names = [shortened(bar.label, 34) for bar in chart.bars]
    left = 16 + CHARACTER * max(len(name) for name in names)
    height = TOP + ROW * len(chart.bars) + BOTTOM - 10
    root = _root(WIDE, height, chart.x_label)
    low, high = _range([*(b.low for b in chart.bars), *(b.high for b in chart.bars),
                        *(seed for bar in chart.bars for seed in bar.seeds)])  # fmt: skip
    across, bottom = Scale(low, high, left, WIDE - RIGHT), height - BOTTOM + 6
    for tick in ticks(low, high, 7):
        _line(root, (across(tick), TOP - 10, across(tick), bottom), "grid")
        _text(root, across(tick), bottom + 15, f"{tick:g}")
    _text(root, (left + WIDE) / 2, bottom + 31, shortened(chart.x_label, 90), kind="label")
    for number, (name, bar) in enumerate(zip(names, chart.bars, strict=True)):
        _bar(root, bar, name, across, TOP + ROW * (number + 0.5) - 4, left)
    return root


def _bar(root: Element, bar: Bar, name: str, across: Scale, y: float, left: float) -> None:
    group = SubElement(root, "g", {"class": f"series {colour(bar.place)}"})
    _text(group, left - 8, y + 4, name, "end", "name")
    tooltip = f"{name}: {bar.value:.2f}, 95 % interval {bar.low:.2f} to {bar.high:.2f}"
    width = max(1.0, across(bar.high) - across(bar.low))
    _shape(
        group, "rect", tooltip, x=across(bar.low), y=y - 5, width=round(width, 1), height=10, rx=2, **{"class": "band"}
    )
    _shape(group, "rect", tooltip, x=across(bar.value) - 1.5, y=y - 9, width=3, height=18, **{"class": "solid"})
    for number, seed in enumerate(bar.seeds):
        _shape(group, "circle", f"{name}, training {number + 1}: {seed:.2f}", cx=across(seed), cy=y, r=3.4,
                **{"class": "open"})  # fmt: skip


def _panel(panel: Panel, description: str) -> Element:
    """Curves or marks over axes."""
    root = _root(*PANEL, description)
    lines = (*panel.lines, *panel.reference)
    x_low, x_high = _range([0.0, *(float(x) for line in lines for x in line.x)], pad=False)
    y_low, y_high = _range([float(y) for line in lines for part in (line.low, line.high) for y in part])
    x_high += 0.03 * (x_high - x_low)  # room for the last mark
    across, up = Scale(x_low, x_high, LEFT, PANEL[0] - RIGHT), Scale(y_low, y_high, PANEL[1] - BOTTOM, TOP)
    _axes(root, panel, across, up)
    for line in lines[::-1]:  # references first, the first arm last: on top
        _curve(root, line, across, up, panel.x_label)
    return root


def _range(values: Iterable[float], pad: bool = True) -> tuple[float, float]:
    """Lowest and highest of the finite values; with a margin at both ends if `pad`."""
    finite = [value for value in values if np.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    room = 0.05 * (high - low) if high > low else 0.5 if pad else 1.0
    return (low - room, high + room) if pad else (low, high if high > low else high + room)


def _axes(root: Element, panel: Panel, across: Scale, up: Scale) -> None:
    for tick in ticks(up.low, up.high):
        _line(root, (LEFT, up(tick), PANEL[0] - RIGHT, up(tick)), "grid")
        _text(root, LEFT - 6, up(tick) + 4, f"{tick:g}", "end")
    for tick in ticks(across.low, across.high, 5):
        _line(root, (across(tick), up.start, across(tick), up.start + 4), "tick")
        _text(root, across(tick), up.start + 16, amount(tick))
    _line(root, (LEFT, up.start, PANEL[0] - RIGHT, up.start), "axis")
    _text(root, (LEFT + PANEL[0] - RIGHT) / 2, PANEL[1] - 8, shortened(panel.x_label, 48), kind="label")
    heading = panel.title or panel.y_label
    _text(root, 4, 14, shortened(heading, 52), "start", "label")


def _curve(root: Element, line: Line, across: Scale, up: Scale, x_label: str) -> None:
    if not len(line.x):
        return
    group = SubElement(root, "g", {"class": f"series {colour(line.place)}"})
    xs, ys = [across(float(x)) for x in line.x], [up(float(y)) for y in line.y]
    lows, highs = ([up(float(y)) for y in part] for part in (line.low, line.high))
    if len(xs) == 1:
        _line(group, (xs[0], lows[0], xs[0], highs[0]), "error")
    else:
        edge = [*zip(xs, highs, strict=True), *zip(xs[::-1], lows[::-1], strict=True)]
        SubElement(group, "polygon", {"class": "band", "points": " ".join(f"{x:g},{y:g}" for x, y in edge)})
        dash = DASHES[line.place % len(DASHES)] if line.place >= 0 else ""
        points = " ".join(f"{x:g},{y:g}" for x, y in zip(xs, ys, strict=True))
        SubElement(group, "polyline", {"class": "curve", "points": points, "stroke-dasharray": dash})
    if line.lead:
        _line(group, (across(0.0), ys[0], xs[0], ys[0]), "lead")
    _points(group, line, xs, ys, x_label)


def _points(group: Element, line: Line, xs: Sequence[float], ys: Sequence[float], x_label: str) -> None:
    """Points with tooltips; of a long curve at most `POINTS`."""
    name, single = shortened(line.label), len(xs) == 1
    for at in sorted({round(n) for n in np.linspace(0, len(xs) - 1, min(len(xs), POINTS))}):
        spread = f" ({line.low[at]:.4g} to {line.high[at]:.4g})" if line.high[at] > line.low[at] else ""
        tooltip = f"{name}: {line.y[at]:.4g}{spread} at {amount(float(line.x[at]))} {x_label.split(',')[0]}"
        _shape(group, "circle", tooltip, cx=xs[at], cy=ys[at], r=4.5 if single else 2.4, **{"class": "point"})
