"""The parts of a report about training: how fast, at what cost, with which values, and what it looked like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.reporting.analysis import departures, tables
from bench.reporting.analysis.findings import Findings
from bench.reporting.analysis.outcomes import Outcomes
from bench.reporting.formatting import NO_VALUE, PLUS_MINUS, escaped, slug
from bench.reporting.pages import columns as frames
from bench.reporting.pages.document import Bullets, Figure, Paragraph, Section, Table, section, table
from bench.reporting.pages.scores import Figures, figure, heading, of_task

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


def convergence(found: Findings, figures: Figures) -> Section:
    """How fast the arms learned, in numbers and as curves."""
    before = [figures[name] for name in figures if name == "pretraining"]
    loud = [Paragraph(frames.text(sentence), loud=True) for sentence in found.deviations]
    parts = [
        section(
            heading(comparison),
            figure(figures, f"convergence-{slug(comparison.task)}"),
            _levels(found, comparison.task),
            _crossings(found, comparison.task),
            _area(found, comparison.task),
        )
        for comparison in found.comparisons
    ]
    return section("Convergence", parts=[*parts, section("Before the labels", *loud, *(Figure(one) for one in before))])


def _levels(found: Findings, task: str) -> Table | None:
    """What it took to reach given scores; both the epochs of the last stage and all that came before."""
    rows = [
        {
            "reaching %": f"{row['level']:g}",
            "arm": frames.name(row["label"]),
            "seeds that did": f"{int(row['reached'])} of {int(row['seeds'])}",
            **{heading: frames.plus_minus(row[unit], row[f"{unit}_high"]) for unit, heading in LEVELS.items()},
        }
        for row in of_task(found.levels, task).to_dict("records")
    ]
    caption = (
        f"What it took to reach a score: mean over the seeds that did, {PLUS_MINUS} half of the 95 % interval where "
        "there are several. Own stage: the last one alone, which favours pretrained arms; all: with every upstream "
        "stage, teacher and tokenizer included."
    )
    return table(f"levels-{slug(task)}", rows, [column for column in rows[0] if column != "arm"] if rows else (),
                 caption=caption)  # fmt: skip


def _crossings(found: Findings, task: str) -> Table | None:
    rows = [
        {
            "pair": f"{frames.name(row['first_label'])}, {frames.name(row['second_label'])}",
            "along": UNITS.get(row["unit"], escaped(str(row["unit"]))),
            "they cross at": frames.with_interval(row["at"], row["low"], row["high"], frames.cost),
            "score % there": frames.score(row["score"]),
            "ahead before": frames.name(row["leads_before"]),
            "ahead after": frames.name(row["leads_after"]),
        }
        for row in of_task(found.crossings, task).to_dict("records")
    ]
    return table(f"crossings-{slug(task)}", rows, ("they cross at", "score % there"), folded="Where curves cross")


def _area(found: Findings, task: str) -> Table | None:
    here = of_task(found.area, task)
    rows = []
    for _, own in here.groupby("arm", sort=False):
        values = {row["unit"]: row for row in own.to_dict("records")}
        cells = {UNITS.get(unit, unit): _mean_area(values.get(unit)) for unit in here["unit"].unique()}
        rows.append({"arm": frames.name(own["label"].iloc[0]), **cells})
    return table(f"area-{slug(task)}", rows, list(rows[0])[1:] if rows else (), folded="Area under the curves",
                 caption="Mean score in percent over the range that all arms have in common.")  # fmt: skip


def _mean_area(row: Mapping[Any, Any] | None) -> str:
    return NO_VALUE if row is None else frames.with_interval(row["area"], row["low"], row["high"], frames.score)


def cost(found: Findings, figures: Figures) -> Section:
    """What the arms took, and what each reached within the same budget."""
    return section("Cost", parts=[_cost_of(found, c.task, heading(c), figures) for c in found.comparisons])


def _cost_of(found: Findings, task: str, title: str, figures: Figures) -> Section:
    rows = tables.cost_rows(of_task(found.table, task))
    caption = (
        f"{escaped(task)}. Mean over seeds. 'Own stage' is the last training stage; 'with upstream' adds tokenizer, "
        "teacher and pretraining in full, also where several arms share them. Images count every time they are seen; "
        "FLOPs include teachers and tokenizers; device-hours are training time without evaluation, times devices."
    )
    return section(
        title,
        table(f"cost-{slug(task)}", rows, list(rows[0])[1:], caption=caption),
        figure(figures, f"cost-{slug(task)}"),
        _matched(found, task),
        _pareto(found, task),
    )


def _matched(found: Findings, task: str) -> Table | None:
    """The best score of every arm within a budget."""
    here = of_task(found.matched, task)
    labels = list(here["label"].unique())
    rows = []
    for (unit, budget), own in here.groupby(["unit", "budget"], sort=False):
        values = {row["label"]: row for row in own.to_dict("records")}
        cells = {frames.name(label): _within(values.get(label)) for label in labels}
        rows.append({"within": f"{frames.cost(budget)} {UNITS.get(str(unit), escaped(str(unit)))}", **cells})
    return table(f"matched-{slug(task)}", rows, list(rows[0])[1:] if rows else (),
                 folded="Best score within the same budget",
                 caption="In percent. **Bold**: highest within that budget.")  # fmt: skip


def _within(row: Mapping[Any, Any] | None) -> str:
    if row is None:
        return NO_VALUE
    shown = frames.with_interval(row["score"], row["low"], row["high"], frames.score)
    return f"**{shown}**" if row["best"] else shown


def _pareto(found: Findings, task: str) -> Table | None:
    here = of_task(found.pareto, task)
    rows = []
    for _, own in here.groupby("arm", sort=False):
        values = {row["unit"]: row for row in own.to_dict("records")}
        cells = {UNITS.get(unit, unit): _front(values.get(unit)) for unit in here["unit"].unique()}
        rows.append({"arm": frames.name(own["label"].iloc[0]), **cells})
    return table(f"pareto-{slug(task)}", rows, list(rows[0])[1:] if rows else (), folded="Which arms nothing beats",
                 caption="**Bold**: no other arm scores higher for the same cost or less.")  # fmt: skip


def _front(row: Mapping[Any, Any] | None) -> str:
    if row is None:
        return NO_VALUE
    return f"**{frames.cost(row['cost'])}**" if row["on_front"] else frames.cost(row["cost"])


def differing(found: Findings) -> Section:
    """What is not the same in all arms, and how each departs from its paper."""
    parts = [section(heading(c), *_values(found, c.task)) for c in found.comparisons]
    return section("What differs between the arms", parts=[*parts, _departures(found), _fidelity(found.outcomes)])


def _values(found: Findings, task: str) -> list[Table | None]:
    keys = [c for c in found.fingerprints.columns if c not in ("task", "arm", "label", "fingerprint")]
    here = of_task(found.fingerprints, task)
    varying = [key for key in keys if here[key].astype(str).nunique() > 1]
    columns = {"label": ("arm", frames.name), "fingerprint": ("protocol", _code)}
    protocol = frames.rows(here, columns | {key: (escaped(key), frames.text) for key in varying})
    values = departures.differing_values(found.outcomes, task)
    return [
        table(f"protocol-{slug(task)}", protocol,
              caption="Rows with the same protocol may be subtracted; beside it stand the keys in which some differ."),
        table(f"values-{slug(task)}", values, folded=f"Values of models and recipes that differ: {len(values)}",
              caption="Of each arm's last training stage and of the stages before it."),
    ]  # fmt: skip


def _code(value: object) -> str:
    return f"`{value}`"


def _departures(found: Findings) -> Section:
    told = Paragraph("Published value, then the one here. The numbers are those of the tables of scores.")
    title = "Departures from the published recipes"
    return section(title, told, Bullets(found.notes.texts, "note")) if found.notes.texts else Section(title)


def _fidelity(outcomes: Outcomes) -> Section:
    """How close each method's code is to its paper."""
    seen = {(arm.method, arm.variant): arm for arm in outcomes.plan.arms}
    rows = [
        {
            "method": escaped(f"{method}:{variant}" if variant else method),
            "fidelity": arm.fidelity,
            "meaning": FIDELITY[arm.fidelity],
            "departures of the code": escaped("; ".join(arm.departures), frames.LONGEST_TEXT) or "none",
        }
        for (method, variant), arm in seen.items()
    ]
    return section("Fidelity", table("fidelity", rows))


def pictures(found: Findings, figures: Figures) -> Section:
    """Tokens, predictions, attention, label maps, and images that one arm gets right and the other wrong."""
    kinds = ("predictions", "flips", "attention", "segmentation")
    parts = [
        section(heading(c), *(figure(figures, f"{kind}-{slug(c.task)}") for kind in kinds)) for c in found.comparisons
    ]
    before = [Figure(figures[n]) for n in figures if n.startswith(("tokenizer-", "pretrain-")) and figures[n].pictures]
    return section("Pictures", parts=[*parts, section("Before the labels", *before)])
