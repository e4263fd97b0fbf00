"""Charts: scores with intervals, convergence along three axes, what happened during pretraining."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bench.compare import curves, drawing
from bench.compare.differences import Comparison
from bench.compare.drawing import Drawn
from bench.compare.outcomes import Outcomes
from bench.compare.tables import label_of
from bench.compare.text import amount, escaped, metric_name, slug

COLUMNS = 3  # panels side by side


def charts(outcomes: Outcomes, comparisons: list[Comparison]) -> list[Drawn]:
    """All charts of a report, in the order in which they are shown. What has no data is not drawn."""
    places = _places(outcomes)
    convergence, pretraining = curves.convergence(outcomes), curves.pretraining(outcomes)
    drawn = []
    for comparison in comparisons:
        here = convergence[convergence["task"] == comparison.task]
        if comparison.scores:
            drawn.append(_scores(comparison, places))
        if not here.empty:
            drawn.append(_convergence(here, comparison, places))
    return [*drawn, _pretraining(pretraining)] if not pretraining.empty else drawn


def _places(outcomes: Outcomes) -> dict[str, int]:
    """Place of every label in the plan: an arm has one colour in all figures."""
    labels = dict.fromkeys(label_of(arm) for arm in outcomes.plan.arms)
    return {name: place for place, name in enumerate(labels)}


def _scores(comparison: Comparison, places: dict[str, int]) -> Drawn:
    """Mean, interval and single seeds of every arm of a task."""
    figure = drawing.canvas(6.0, 0.8 + 0.42 * len(comparison.scores))
    axes = figure.add_subplot()
    names = [label_of(score.arm.planned) for score in comparison.scores]
    for row, (name, score) in enumerate(zip(names, comparison.scores, strict=True)):
        colour = drawing.colour(places[name])
        seeds = [outcome.metrics[comparison.metric] for outcome in score.arm.seeds]
        axes.plot(score.interval, [row, row], color=colour, linewidth=3, alpha=0.45, solid_capstyle="butt")
        axes.plot(seeds, [row] * len(seeds), "o", color="white", markeredgecolor=colour, markersize=4.5, zorder=3)
        axes.plot(score.spread.mean, row, "|", color=colour, markersize=15, markeredgewidth=2.5, zorder=4)
    axes.set_yticks(range(len(names)), [drawing.label(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{metric_name(comparison.metric)} on {drawing.label(comparison.task)} (%)")
    caption = "Bar: 95 % interval over images. Upright line: mean over seeds. Circles: single seeds."
    return drawing.finished(figure, f"scores-{slug(comparison.task)}", caption)


def _convergence(frame: pd.DataFrame, comparison: Comparison, places: dict[str, int]) -> Drawn:
    """The headline metric against epochs of the last stage, all images seen, and all training seconds."""
    figure = drawing.canvas(9.6, 3.3)
    panels = figure.subplots(1, len(curves.AXES), sharey=True)
    for panel, (axis, meaning) in zip(panels, curves.AXES.items(), strict=True):
        for _, curve in frame.groupby("arm", sort=False):
            _curve(panel, curve, axis, places)
        panel.set_xlabel(meaning)
        panel.set_xlim(left=0)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
    panels[0].set_ylabel(f"{metric_name(comparison.metric)} on {drawing.label(comparison.task)} (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)))
    caption = (
        f"{metric_name(comparison.metric)} on {escaped(comparison.task)} while training. Line: mean over seeds; band: "
        "lowest to highest seed. Dotted: upstream stages (tokenizer, teacher, pretraining), before the first score."
    )
    return drawing.finished(figure, f"convergence-{slug(comparison.task)}", caption)


def _curve(panel: Axes, curve: pd.DataFrame, axis: str, places: dict[str, int]) -> None:
    name = str(curve["label"].iloc[0])
    band, place = curves.band(curve, axis), places[name]
    if not len(band.x):
        return
    colour, line = drawing.colour(place), drawing.line(place)
    panel.fill_between(band.x, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
    panel.plot(band.x, band.mean, linestyle=line, color=colour, marker=drawing.marker(place), markersize=3.5,
               markevery=max(1, len(band.x) // 8), label=drawing.label(name))  # fmt: skip
    if axis != "epoch":
        panel.plot([0, band.x[0]], [band.mean[0]] * 2, ":", color=colour, linewidth=1, alpha=0.8)


def _pretraining(frame: pd.DataFrame) -> Drawn:
    """A panel for every stage and quantity: losses of different methods share no scale."""
    curves_of = list(frame.groupby(["stage", "metric"], sort=False))
    rows = -(-len(curves_of) // COLUMNS)
    figure = drawing.canvas(9.6, 2.5 * rows)
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for panel, ((stage, metric), curve) in zip(panels, curves_of, strict=False):
        band = curves.band(curve, "epoch")
        panel.fill_between(band.x, band.low, band.high, color=drawing.COLOURS[0], alpha=0.25, linewidth=0)
        panel.plot(band.x, band.mean, color=drawing.COLOURS[0])
        panel.set_title(f"{drawing.label(str(stage))}: {str(metric).replace('_', ' ')}", loc="left")
        panel.set_xlabel("epochs")
    for panel in panels[len(curves_of) :]:
        panel.set_axis_off()
    caption = "Training before the labels, on training data. Line: mean over seeds; band: lowest to highest seed."
    return drawing.finished(figure, "pretraining", caption)
