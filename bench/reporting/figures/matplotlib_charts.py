"""Charts as files, drawn with matplotlib."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bench.reporting.figures import style
from bench.reporting.figures.charts import Chart, Line, Panel
from bench.reporting.figures.style import DrawnFigure
from bench.reporting.formatting import amount

COLUMNS = 3  # panels side by side
REFERENCE = "#888888"


def draw(chart: Chart) -> DrawnFigure:
    """The chart as SVG and PNG."""
    return _bars(chart) if chart.bars else _panels(chart)


def _bars(chart: Chart) -> DrawnFigure:
    """A bar per row, from top to bottom."""
    figure = style.canvas(6.0, 0.8 + 0.42 * len(chart.bars))
    axes = figure.add_subplot()
    for row, bar in enumerate(chart.bars):
        colour = style.colour(bar.place)
        axes.plot([bar.low, bar.high], [row, row], color=colour, linewidth=3, alpha=0.45, solid_capstyle="butt")
        axes.plot(bar.seeds, [row] * len(bar.seeds), "o", color="white", markeredgecolor=colour, markersize=4.5)
        axes.plot(bar.value, row, "|", color=colour, markersize=15, markeredgewidth=2.5, zorder=4)
    axes.set_yticks(range(len(chart.bars)), [style.label(bar.label) for bar in chart.bars])
    axes.set_ylim(len(chart.bars) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(style.label(chart.x_label, 60))
    return style.finish(figure, chart.name, chart.caption, chart=chart)


def _panels(chart: Chart) -> DrawnFigure:
    """Panels side by side, in rows of at most COLUMNS; a legend where they share their curves."""
    columns = 2 if len(chart.panels) == 4 else min(COLUMNS, len(chart.panels))
    rows = -(-len(chart.panels) // columns)
    shared = len({tuple(line.label for line in panel.lines) for panel in chart.panels}) == 1
    legend = shared and len(chart.panels[0].lines) > 1
    figure = style.canvas(3.2 * columns, (2.5 if rows > 1 or not legend else 3.3) * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=legend).ravel()
    for axes, panel in zip(grid, chart.panels, strict=False):
        _panel(axes, panel)
    for axes in grid[len(chart.panels) :]:
        axes.set_axis_off()
    if legend:
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)))
    return style.finish(figure, chart.name, chart.caption, chart=chart)


def _panel(axes: Axes, panel: Panel) -> None:
    for line in panel.reference:
        axes.fill_between(line.x, line.low, line.high, color=REFERENCE, alpha=0.25, linewidth=0)
        axes.plot(line.x, line.y, color=REFERENCE, linewidth=1)
    for line in panel.lines:
        _line(axes, line)
    axes.set_title(style.label(panel.title, 44), loc="left")
    axes.set(xlabel=panel.x_label, ylabel=style.label(panel.y_label, 44))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))


def _line(axes: Axes, line: Line) -> None:
    colour, label = style.colour(line.place), style.label(line.label)
    if len(line.x) == 1:
        error = [[line.y[0] - line.low[0]], [line.high[0] - line.y[0]]]
        axes.errorbar(line.x, line.y, error, fmt=style.marker(line.place), color=colour, label=label)
    elif len(line.x):
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(line.x, line.y, linestyle=style.line(line.place), color=colour, markersize=3.5, label=label,
                  marker=style.marker(line.place), markevery=max(1, len(line.x) // 8))  # fmt: skip
    if line.lead and len(line.x):
        axes.plot([0, line.x[0]], [line.y[0]] * 2, ":", color=colour, linewidth=1, alpha=0.8)
