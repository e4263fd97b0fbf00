"""Sections about training: convergence, cost, what is configured differently, and pictures of what was learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from bench.reporting.analysis import departures, tables
from bench.reporting.analysis.findings import Findings
from bench.reporting.analysis.outcomes import Outcomes
from bench.reporting.formatting import NO_VALUE, PLUS_MINUS, escaped, slug
from bench.reporting.pages import columns
from bench.reporting.pages.columns import of_task
from bench.reporting.pages.document import (
    Bullets,
    Figure,
    Figures,
    Paragraph,
    Section,
    Table,
    figure,
    section,
    table,
    task_heading,
)

FIDELITY = {
    "exact": "as the authors' code does it, checked against its outputs",
    "close": "the authors' method with small, named departures in code",
    "variant": "a named change to the published method",
    "placeholder": "not the published method; do not cite",
}
LEVELS = {"epochs": "epochs: own stage", "images_own": "images: own stage", "images_all": "images: all",
          "flops_all": "FLOPs: all", "device_hours_all": "device-hours: all"}  # fmt: skip
UNITS = {
    "epochs": "epochs of the last stage", "epoch": "epochs of the last stage", "images_own": "images, own stage",
    "images_all": "images, upstream included", "images": "images, upstream included",
    "flops_all": "FLOPs, upstream included", "flops": "FLOPs, upstream included",
    "device_hours_all": "device-hours, upstream included", "device_hours": "device-hours, upstream included",
    "seconds": "training seconds, upstream included",
}  # fmt: skip


def convergence(findings: Findings, figures: Figures) -> Section:
    """How fast the arms learned, in numbers and as curves."""
    warnings = [Paragraph(columns.text(sentence), loud=True) for sentence in findings.deviations]
    parts = [
        section(
            task_heading(comparison),
            figure(figures, f"convergence-{slug(comparison.task)}"),
            _levels(findings, comparison.task),
            _crossings(findings, comparison.task),
            _area(findings, comparison.task),
        )
        for comparison in findings.comparisons
    ]
    pretraining = section("Before the labels", *warnings, figure(figures, "pretraining"))
    return section("Convergence", parts=[*parts, pretraining])


def _levels(findings: Findings, task: str) -> Table | None:
    """What it took to reach given scores: epochs of the last stage, and costs with and without upstream stages."""
    rows = [
        {
            "reaching %": f"{row['level']:g}",
            "arm": columns.name(row["label"]),
            "seeds that did": f"{int(row['reached'])} of {int(row['seeds'])}",
            **{heading: columns.plus_minus(row[unit], row[f"{unit}_high"]) for unit, heading in LEVELS.items()},
        }
        for row in of_task(findings.levels, task).to_dict("records")
    ]
    caption = (
        f"What it took to reach a score: mean over the seeds that did, {PLUS_MINUS} half of the 95 % interval where "
        "there are several. Own stage: the last one alone, which favours pretrained arms; all: with every upstream "
        "stage, teacher and tokenizer included."
    )
    return table(f"levels-{slug(task)}", rows, [column for column in rows[0] if column != "arm"] if rows else (),
                 caption=caption)  # fmt: skip


def _crossings(findings: Findings, task: str) -> Table | None:
    rows = [
        {
            "pair": f"{columns.name(row['first_label'])}, {columns.name(row['second_label'])}",
            "along": UNITS.get(row["unit"], escaped(str(row["unit"]))),
            "they cross at": columns.with_interval(row["at"], row["low"], row["high"], columns.cost),
            "score % there": columns.score(row["score"]),
            "ahead before": columns.name(row["leads_before"]),
            "ahead after": columns.name(row["leads_after"]),
        }
        for row in of_task(findings.crossings, task).to_dict("records")
    ]
    return table(f"crossings-{slug(task)}", rows, ("they cross at", "score % there"), folded="Where curves cross")


def _rows_by_unit(frame: pd.DataFrame, cell: Callable[[Mapping[Any, Any] | None], str]) -> list[dict[str, str]]:
    """A row per arm with a cell per unit of cost; `cell` gets None where an arm has no value."""
    rows = []
    for _, arm in frame.groupby("arm", sort=False):
        values = {row["unit"]: row for row in arm.to_dict("records")}
        cells = {UNITS.get(unit, unit): cell(values.get(unit)) for unit in frame["unit"].unique()}
        rows.append({"arm": columns.name(arm["label"].iloc[0]), **cells})
    return rows


def _area(findings: Findings, task: str) -> Table | None:
    rows = _rows_by_unit(of_task(findings.area, task), _mean_area)
    return table(f"area-{slug(task)}", rows, list(rows[0])[1:] if rows else (), folded="Area under the curves",
                 caption="Mean score in percent over the range that all arms have in common.")  # fmt: skip


def _mean_area(row: Mapping[Any, Any] | None) -> str:
    return NO_VALUE if row is None else columns.with_interval(row["area"], row["low"], row["high"], columns.score)


def cost(findings: Findings, figures: Figures) -> Section:
    """What the training of every arm took, and what each reached within the same budget."""
    return section("Cost", parts=[_cost_of(findings, c.task, task_heading(c), figures) for c in findings.comparisons])


def _cost_of(findings: Findings, task: str, title: str, figures: Figures) -> Section:
    rows = tables.cost_rows(of_task(findings.table, task))
    caption = (
        f"{escaped(task)}. Mean over seeds. 'Own stage' is the last training stage; 'with upstream' adds tokenizer, "
        "teacher and pretraining in full, also where several arms share them. Images count every time they are seen; "
        "FLOPs include teachers and tokenizers; device-hours are training time without evaluation, times devices."
    )
    return section(
        title,
        table(f"cost-{slug(task)}", rows, list(rows[0])[1:], caption=caption),
        figure(figures, f"cost-{slug(task)}"),
        _matched(findings, task),
        _pareto(findings, task),
    )


def _matched(findings: Findings, task: str) -> Table | None:
    """The best score of every arm within a budget."""
    frame = of_task(findings.matched, task)
    labels = list(frame["label"].unique())
    rows = []
    for (unit, budget), arms in frame.groupby(["unit", "budget"], sort=False):
        values = {row["label"]: row for row in arms.to_dict("records")}
        cells = {columns.name(label): _best_score(values.get(label)) for label in labels}
        rows.append({"within": f"{columns.cost(budget)} {UNITS.get(str(unit), escaped(str(unit)))}", **cells})
    return table(f"matched-{slug(task)}", rows, list(rows[0])[1:] if rows else (),
                 folded="Best score within the same budget",
                 caption="In percent. **Bold**: highest within that budget.")  # fmt: skip


def _best_score(row: Mapping[Any, Any] | None) -> str:
    if row is None:
        return NO_VALUE
    score = columns.with_interval(row["score"], row["low"], row["high"], columns.score)
    return f"**{score}**" if row["best"] else score


def _pareto(findings: Findings, task: str) -> Table | None:
    rows = _rows_by_unit(of_task(findings.pareto, task), _front_cost)
    return table(f"pareto-{slug(task)}", rows, list(rows[0])[1:] if rows else (), folded="Which arms nothing beats",
                 caption="**Bold**: no other arm scores higher for the same cost or less.")  # fmt: skip


def _front_cost(row: Mapping[Any, Any] | None) -> str:
    if row is None:
        return NO_VALUE
    return f"**{columns.cost(row['cost'])}**" if row["on_front"] else columns.cost(row["cost"])


def configurations(findings: Findings) -> Section:
    """Which settings differ between the arms, and how each arm departs from its paper."""
    parts = [section(task_heading(c), *_values(findings, c.task)) for c in findings.comparisons]
    return section("What differs between the arms", parts=[*parts, _departures(findings), _fidelity(findings.outcomes)])


def _values(findings: Findings, task: str) -> list[Table | None]:
    keys = [c for c in findings.fingerprints.columns if c not in ("task", "arm", "label", "fingerprint")]
    frame = of_task(findings.fingerprints, task)
    varying = [key for key in keys if frame[key].astype(str).nunique() > 1]
    headings = {"label": ("arm", columns.name), "fingerprint": ("protocol", _code)}
    protocol = columns.rows(frame, headings | {key: (escaped(key), columns.text) for key in varying})
    values = departures.differing_values(findings.outcomes, task)
    return [
        table(f"protocol-{slug(task)}", protocol,
              caption="Rows with the same protocol may be subtracted; beside it stand the keys in which some differ."),
        table(f"values-{slug(task)}", values, folded=f"Values of models and recipes that differ: {len(values)}",
              caption="Of each arm's last training stage and of the stages before it."),
    ]  # fmt: skip


def _code(value: object) -> str:
    return f"`{value}`"


def _departures(findings: Findings) -> Section:
    title, texts = "Departures from the published recipes", findings.notes.texts
    legend = Paragraph("Published value, then the one here. The numbers are those of the tables of scores.")
    return section(title, legend, Bullets(texts, "note")) if texts else Section(title)


def _fidelity(outcomes: Outcomes) -> Section:
    """How close each method's code is to its paper, once for each method and variant."""
    methods = {(arm.method, arm.variant): arm for arm in outcomes.plan.arms}
    rows = [
        {
            "method": escaped(f"{method}:{variant}" if variant else method),
            "fidelity": arm.fidelity,
            "meaning": FIDELITY[arm.fidelity],
            "departures of the code": escaped("; ".join(arm.departures), columns.LONGEST_TEXT) or "none",
        }
        for (method, variant), arm in methods.items()
    ]
    return section("Fidelity", table("fidelity", rows))


def pictures(findings: Findings, figures: Figures) -> Section:
    """Tokens, predictions, attention, label maps, and images that one arm gets right and the other wrong."""
    kinds = ("predictions", "flips", "attention", "segmentation")
    parts = [
        section(task_heading(c), *(figure(figures, f"{kind}-{slug(c.task)}") for kind in kinds))
        for c in findings.comparisons
    ]
    stages = ("tokenizer-", "pretrain-")
    pretraining = [Figure(drawn) for name, drawn in figures.items() if name.startswith(stages) and drawn.pictures]
    return section("Pictures", parts=[*parts, section("Before the labels", *pretraining)])
