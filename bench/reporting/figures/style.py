"""The style of all figures, and how they are written: SVG and PNG without dates or random ids, so bytes repeat."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, NamedTuple

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from bench.reporting.figures.charts import Chart
from bench.reporting.formatting import shortened

# Okabe and Ito's palette without its yellow, in an order in which neighbours differ in lightness too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))  # dotted is reserved for upstream stages
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DOTS_PER_INCH = 110
SETTINGS: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "figure.dpi": DOTS_PER_INCH,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that figures do not depend on the machine
    "font.size": 9,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.facecolor": "white",
    "svg.hashsalt": "bench",  # ids of elements are random without it
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
}


class DrawnFigure(NamedTuple):
    """A finished figure. `caption` is marked text; `pictures`: a grid of images rather than a chart."""

    name: str
    caption: str
    svg: bytes
    png: bytes
    pictures: bool = False
    chart: Chart | None = None  # its data; None for pictures


@contextmanager
def settings() -> Iterator[None]:
    """Draw in the style above, whatever a matplotlibrc says; the previous settings return afterwards."""
    with style.context(["default", SETTINGS]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a letter that the font lacks is a box; the page has it
        yield


def canvas(width: float, height: float, *, pictures: bool = False) -> Figure:
    """An empty figure of this size in inches; `pictures` keep their aspect ratio and are packed closely."""
    figure = Figure(figsize=(width, height), layout="compressed" if pictures else "constrained")
    FigureCanvasAgg(figure)
    return figure


def finish(figure: Figure, name: str, caption: str, pictures: bool = False, chart: Chart | None = None) -> DrawnFigure:
    """The figure as SVG and PNG, whose bytes depend on nothing but what is drawn."""
    svg, png = BytesIO(), BytesIO()
    if layout := figure.get_layout_engine():
        layout.execute(figure)
    figure.set_layout_engine("none")  # the layout was computed once, for both files; savefig would do it for each
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    return DrawnFigure(name, caption, svg.getvalue(), png.getvalue(), pictures, chart)


def colour(index: int) -> str:
    """Colour of the arm at this place in the plan."""
    return COLOURS[index % len(COLOURS)]


def line(index: int) -> str | tuple[int, tuple[int, ...]]:
    """Line style of the arm at this place in the plan: distinguishes arms where colours repeat or cannot be seen."""
    return LINES[index % len(LINES)]


def marker(index: int) -> str:
    """Marker of the arm at this place in the plan."""
    return MARKERS[index % len(MARKERS)]


def label(name: str, longest: int = 28) -> str:
    """A name short enough for a legend or an axis."""
    return shortened(name, longest)
