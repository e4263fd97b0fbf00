"""The parts of a report about scores: who is best, by how much, how sure that is, and on which images they differ."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from bench.reporting.analysis import tables
from bench.reporting.analysis.comparisons import Comparison
from bench.reporting.analysis.findings import Findings
from bench.reporting.analysis.outcomes import label_of
from bench.reporting.figures.style import Drawn
from bench.reporting.formatting import ALIKE, MINUS, NO_VALUE, PLUS_MINUS, escaped, metric_name, points, slug
from bench.reporting.pages import columns
from bench.reporting.pages.document import Block, Bullets, Figure, Paragraph, Section, Table, section, table

CLASSES_SHOWN = 12  # of every pair: those with the largest differences
Figures = Mapping[str, Drawn]  # by name


def heading(comparison: Comparison) -> str:
    """'demo: top-1'."""
    return f"{escaped(comparison.task)}: {metric_name(comparison.metric)}"


def of_task(frame: pd.DataFrame, task: str) -> pd.DataFrame:
    """The rows of a frame that speak of a task."""
    return frame[frame["task"] == task]


def figure(figures: Figures, name: str) -> Figure | None:
    """The figure of this name, if it was drawn."""
    return Figure(figures[name]) if name in figures else None


def scores(found: Findings, figures: Figures) -> Section:
    """The main table of every task, with what stands behind it."""
    return section("Scores", parts=[_scores_of(found, comparison, figures) for comparison in found.comparisons])


def _scores_of(found: Findings, comparison: Comparison, figures: Figures) -> Section:
    task = comparison.task
    rows = tables.main_rows(of_task(found.table, task))
    caption = (
        f"{escaped(task)}. Score: mean {PLUS_MINUS} standard deviation over seeds (number of seeds). **Bold**: highest "
        f"or equal to it; {ALIKE}: cannot be told apart from the highest. 'First in': share of draws of other images, "
        "and of training again where that is known, in which the arm is highest."
    )
    return section(
        heading(comparison),
        table(f"scores-{slug(task)}", rows, (*list(rows[0])[1:4], "first in", "parameters"), caption=caption),
        figure(figures, f"scores-{slug(task)}"),
        _extra(found, task),
        *(_measure(other) for other in found.measures if other.task == task),
        _calibration(found, task),
        _variance(found, task),
    )


def _extra(found: Findings, task: str) -> Table | None:
    rows = tables.extra_rows(found.extra, task)
    return table(
        f"other-{slug(task)}", rows, list(rows[0])[1:] if rows else (), folded="Other scores",
        caption="In percent; loss is the mean cross entropy. 'ema': averaged weights; other names: single heads.",
    )  # fmt: skip


def _measure(comparison: Comparison) -> Table | None:
    """Another per-image measure of a task: the scores, and what can be told apart from its best."""
    alike, highest = comparison.like_best(), comparison.highest()
    rows = []
    for score in comparison.scores:
        own, spread = score.arm.planned.id, score.spread
        shown = f"{spread.mean:.2f}" + ("" if spread.sd is None else f" {PLUS_MINUS} {spread.sd:.2f}")
        marked = f"**{shown}**" if own in highest else f"{shown} {ALIKE}" if own in alike else shown
        rows.append({"arm": escaped(label_of(score.arm.planned)), metric_name(comparison.measure): marked,
                     "95 % interval": tables.shown_interval(score.interval)})  # fmt: skip
    name = f"{metric_name(comparison.measure)} on {escaped(comparison.task)}"
    return table(
        f"measure-{slug(comparison.task)}-{slug(comparison.measure)}", rows, list(rows[0])[1:] if rows else (),
        folded=f"{name}, {comparison.images} images",
        caption=f"{name}, in percent. **Bold**: highest. {ALIKE}: cannot be told apart from it.",
    )  # fmt: skip


def _calibration(found: Findings, task: str) -> Table | None:
    rows = columns.rows(
        of_task(found.calibration, task),
        {"label": ("arm", columns.name), "ece": ("ECE %", columns.score), "ece_sd": ("sd over seeds", columns.score),
         "confidence": ("mean confidence %", columns.score), "seeds": ("seeds", columns.count)},
    )  # fmt: skip
    caption = (
        "Expected calibration error: how far, on average, an arm's confidence is from its accuracy. Lower is better."
    )
    return table(f"calibration-{slug(task)}", rows, list(rows[0])[1:] if rows else (), folded="Calibration",
                 caption=caption)  # fmt: skip


def _variance(found: Findings, task: str) -> Table | None:
    rows = columns.rows(
        of_task(found.variance, task),
        {"label": ("arm", columns.name), "sentence": ("trained", columns.text),
         "sd_pretraining": ("sd of pretraining", columns.score), "sd_finetuning": ("sd of fine-tuning", columns.score),
         "sd_images": ("sd of images", columns.score)},
    )  # fmt: skip
    caption = "Standard deviations of one model's score, in points: where the next seed is best spent."
    return table(f"variance-{slug(task)}", rows, list(rows[0])[2:] if rows else (), caption=caption,
                 folded="Where the spread comes from")  # fmt: skip


def differences(found: Findings) -> Section:
    """Every arm against every other."""
    return section("Differences", parts=[_differences_of(found, comparison) for comparison in found.comparisons])


def _differences_of(found: Findings, comparison: Comparison) -> Section:
    if not comparison.differences:
        return Section(heading(comparison))
    task = slug(comparison.task)
    rows = tables.matrix_rows(comparison)
    caption = (
        f"{escaped(comparison.task)}. Row {MINUS} column in points, mean over seeds, with its 95 % interval over "
        f"{comparison.images} images (paired) and, where seeds allow, over training again. **Bold**: told apart after "
        f"Holm's correction; {ALIKE}: not distinguishable."
    )
    return section(
        heading(comparison),
        table(f"differences-{task}", rows, caption=caption),
        *_allowed(comparison),
        table(f"tests-{task}", tables.pair_rows(comparison), ("difference", "p", "after Holm", "retraining noise"),
              folded="Tests of every pair", caption=TESTS),
        _detectable(found, comparison.task),
    )  # fmt: skip


TESTS = (
    "Exact McNemar: for every seed, images that only the first / only the second model gets right. Retraining noise: "
    "differences of means up to this many points are expected from the seeds alone (Student's t, 5 %). Speaks of: "
    "methods (trained again from the start), fine-tunings (of these pretrained weights) or these weights alone."
)


def _allowed(comparison: Comparison) -> list[Block]:
    texts = tables.allowed_texts(comparison)
    told = Paragraph(f"{tables.ALLOWED} Shown although the protocols differ, because --allow said so:")
    return [told, Bullets(tuple(texts))] if texts else []


def _detectable(found: Findings, task: str) -> Table | None:
    rows = columns.rows(
        of_task(found.detectable, task),
        {"seeds": ("seeds", columns.count), "images": ("images", columns.count),
         "points": ("between methods", columns.score), "points_images": ("between these weights", columns.score)},
    )  # fmt: skip
    caption = "Points by which two arms must differ to be told apart in 80 % of studies of this kind."
    return table(f"detectable-{slug(task)}", rows, list(rows[0]) if rows else (),
                 folded="Smallest detectable difference", caption=caption)  # fmt: skip


def errors(found: Findings) -> Section:
    """Which classes an arm wins and loses, and how often two arms are right about the same image."""
    return section(
        "Errors by class",
        parts=[
            section(heading(c), _agreement(found, c.task), *_classes(found, c.task), _flips(found, c.task))
            for c in found.comparisons
        ],
    )


def _agreement(found: Findings, task: str) -> Table | None:
    rows = columns.rows(
        of_task(found.agreement, task),
        {"first_label": ("first", columns.name), "second_label": ("second", columns.name),
         "both": ("both right %", columns.score), "first_only": ("only the first %", columns.score),
         "second_only": ("only the second %", columns.score), "neither": ("neither %", columns.score)},
    )  # fmt: skip
    return table(f"agreement-{slug(task)}", rows, list(rows[0])[2:] if rows else (),
                 caption="Share of images, mean over pairs of seeds.")  # fmt: skip


def _classes(found: Findings, task: str) -> list[Table | None]:
    """The classes with the largest differences, the best arm against each other one."""
    return [_of_pair(task, pair) for _, pair in of_task(found.classes, task).groupby(["first", "second"], sort=False)]


def _of_pair(task: str, pair: pd.DataFrame) -> Table | None:
    first, second = (escaped(str(pair[column].iloc[0])) for column in ("first_label", "second_label"))
    order = pair["difference"].abs().sort_values(ascending=False, kind="stable").index[:CLASSES_SHOWN]
    largest = pair.loc[order].sort_values("difference", ascending=False, kind="stable")
    rows = [
        {
            "class": columns.name(row["class_name"]),
            "images": columns.count(row["images"]),
            f"{first} %": columns.score(row["first_score"]),
            f"{second}  %": columns.score(row["second_score"]),
            "difference": _marked(row["difference"], row["p_adjusted"]),
            "p after Holm": columns.probability(row["p_adjusted"]),
        }
        for row in largest.to_dict("records")
    ]
    names = "-".join(slug(str(pair[column].iloc[0])) for column in ("first", "second"))
    return table(
        f"classes-{slug(task)}-{names}", rows, list(rows[0])[1:], folded=f"Classes: {first} {MINUS} {second}",
        caption=f"The {len(rows)} of {len(pair)} classes that differ most. **Bold**: told apart after Holm's "
        "correction over the classes of the pair. All of them are in report.json.",
    )  # fmt: skip


def _marked(value: float, p: float) -> str:
    return f"**{points(value)}**" if p <= 0.05 else columns.difference(value)


def _flips(found: Findings, task: str) -> Table | None:
    """Images on which two arms disagree most surely, by their ids."""
    rows = [
        {
            "first": escaped(flip.first), "second": escaped(flip.second),
            "only the first is right": _ids(flip.won), "only the second is right": _ids(flip.lost),
        }
        for flip in found.flips
        if flip.task == task
    ]  # fmt: skip
    return table(f"flips-{slug(task)}", rows, folded="Images that one arm gets right and the other wrong",
                 caption="Ids in the stored predictions, surest first.")  # fmt: skip


def _ids(ids: tuple[str, ...]) -> str:
    return ", ".join(escaped(one) for one in ids) or NO_VALUE
