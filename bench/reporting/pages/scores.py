"""Sections about scores: which arm is best, by how much, how certain that is, and on which images two arms differ."""

from __future__ import annotations

import pandas as pd

from bench.reporting.analysis import tables
from bench.reporting.analysis.comparisons import Comparison
from bench.reporting.analysis.findings import Findings
from bench.reporting.analysis.outcomes import label_of
from bench.reporting.formatting import ALIKE, MINUS, NO_VALUE, PLUS_MINUS, escaped, metric_name, points, slug
from bench.reporting.pages import columns
from bench.reporting.pages.columns import of_task
from bench.reporting.pages.document import (
    Block,
    Bullets,
    Figures,
    Paragraph,
    Section,
    Table,
    figure,
    section,
    table,
    task_heading,
)

CLASSES_SHOWN = 12  # for every pair: those with the largest differences


def scores(findings: Findings, figures: Figures) -> Section:
    """The main table and chart of every task, and the tables behind them."""
    return section("Scores", parts=[_scores_of(findings, comparison, figures) for comparison in findings.comparisons])


def _scores_of(findings: Findings, comparison: Comparison, figures: Figures) -> Section:
    task = comparison.task
    rows = tables.main_rows(of_task(findings.table, task))
    caption = (
        f"{escaped(task)}. Score: mean {PLUS_MINUS} standard deviation over seeds (number of seeds). **Bold**: highest "
        f"or equal to it; {ALIKE}: cannot be told apart from the highest. 'First in': share of draws of other images, "
        "and of training again where that is known, in which the arm is highest."
    )
    return section(
        task_heading(comparison),
        table(f"scores-{slug(task)}", rows, (*list(rows[0])[1:4], "first in", "parameters"), caption=caption),
        figure(figures, f"scores-{slug(task)}"),
        _extra(findings, task),
        *(_measure(other) for other in findings.measures if other.task == task),
        _calibration(findings, task),
        _variance(findings, task),
    )


def _extra(findings: Findings, task: str) -> Table | None:
    rows = tables.extra_rows(findings.extra, task)
    return table(
        f"other-{slug(task)}", rows, list(rows[0])[1:] if rows else (), folded="Other scores",
        caption="In percent; loss is the mean cross entropy. 'ema': averaged weights; other names: single heads.",
    )  # fmt: skip


def _measure(comparison: Comparison) -> Table | None:
    """Scores by another per-image metric of a task, and which arms can be told apart from the best."""
    alike, highest = comparison.like_best(), comparison.highest()
    rows = []
    for score in comparison.scores:
        arm, spread = score.arm.planned.id, score.spread
        number = f"{spread.mean:.2f}" + ("" if spread.sd is None else f" {PLUS_MINUS} {spread.sd:.2f}")
        marked = f"**{number}**" if arm in highest else f"{number} {ALIKE}" if arm in alike else number
        rows.append({"arm": escaped(label_of(score.arm.planned)), metric_name(comparison.measure): marked,
                     "95 % interval": tables.interval_text(score.interval)})  # fmt: skip
    name = f"{metric_name(comparison.measure)} on {escaped(comparison.task)}"
    return table(
        f"measure-{slug(comparison.task)}-{slug(comparison.measure)}", rows, list(rows[0])[1:] if rows else (),
        folded=f"{name}, {comparison.images} images",
        caption=f"{name}, in percent. **Bold**: highest. {ALIKE}: cannot be told apart from it.",
    )  # fmt: skip


def _calibration(findings: Findings, task: str) -> Table | None:
    rows = columns.rows(
        of_task(findings.calibration, task),
        {"label": ("arm", columns.name), "ece": ("ECE %", columns.score), "ece_sd": ("sd over seeds", columns.score),
         "confidence": ("mean confidence %", columns.score), "seeds": ("seeds", columns.count)},
    )  # fmt: skip
    caption = (
        "Expected calibration error: how far, on average, an arm's confidence is from its accuracy. Lower is better."
    )
    return table(f"calibration-{slug(task)}", rows, list(rows[0])[1:] if rows else (), folded="Calibration",
                 caption=caption)  # fmt: skip


def _variance(findings: Findings, task: str) -> Table | None:
    rows = columns.rows(
        of_task(findings.variance, task),
        {"label": ("arm", columns.name), "sentence": ("trained", columns.text),
         "sd_pretraining": ("sd of pretraining", columns.score), "sd_finetuning": ("sd of fine-tuning", columns.score),
         "sd_images": ("sd of images", columns.score)},
    )  # fmt: skip
    caption = "Standard deviations of one model's score, in points: where the next seed is best spent."
    return table(f"variance-{slug(task)}", rows, list(rows[0])[2:] if rows else (), caption=caption,
                 folded="Where the spread comes from")  # fmt: skip


def differences(findings: Findings) -> Section:
    """Every arm minus every other one, with the tests behind it."""
    return section("Differences", parts=[_differences_of(findings, comparison) for comparison in findings.comparisons])


def _differences_of(findings: Findings, comparison: Comparison) -> Section:
    if not comparison.differences:
        return Section(task_heading(comparison))
    task = slug(comparison.task)
    rows = tables.matrix_rows(comparison)
    caption = (
        f"{escaped(comparison.task)}. Row {MINUS} column in points, mean over seeds, with its 95 % interval over "
        f"{comparison.images} images (paired) and, where seeds allow, over training again. **Bold**: told apart after "
        f"Holm's correction; {ALIKE}: not distinguishable."
    )
    return section(
        task_heading(comparison),
        table(f"differences-{task}", rows, caption=caption),
        *_allowed(comparison),
        table(f"tests-{task}", tables.pair_rows(comparison), ("difference", "p", "after Holm", "retraining noise"),
              folded="Tests of every pair", caption=TESTS),
        _detectable(findings, comparison.task),
    )  # fmt: skip


TESTS = (
    "Exact McNemar: for every seed, images that only the first / only the second model gets right. Retraining noise: "
    "differences of means up to this many points are expected from the seeds alone (Student's t, 5 %). Speaks of: "
    "methods (trained again from the start), fine-tunings (of these pretrained weights) or these weights alone."
)


def _allowed(comparison: Comparison) -> list[Block]:
    texts = tables.allowed_texts(comparison)
    reason = Paragraph(f"{tables.ALLOWED} Shown although the protocols differ, because --allow said so:")
    return [reason, Bullets(tuple(texts))] if texts else []


def _detectable(findings: Findings, task: str) -> Table | None:
    rows = columns.rows(
        of_task(findings.detectable, task),
        {"seeds": ("seeds", columns.count), "images": ("images", columns.count),
         "points": ("between methods", columns.score), "points_images": ("between these weights", columns.score)},
    )  # fmt: skip
    caption = "Points by which two arms must differ to be told apart in 80 % of studies of this kind."
    return table(f"detectable-{slug(task)}", rows, list(rows[0]) if rows else (),
                 folded="Smallest detectable difference", caption=caption)  # fmt: skip


def errors(findings: Findings) -> Section:
    """Which classes an arm gains and loses, and how often two arms are right about the same image."""
    return section("Errors by class", parts=[_errors_of(findings, comparison) for comparison in findings.comparisons])


def _errors_of(findings: Findings, comparison: Comparison) -> Section:
    task = comparison.task
    blocks = (_agreement(findings, task), *_classes(findings, task), _flips(findings, task))
    return section(task_heading(comparison), *blocks)


def _agreement(findings: Findings, task: str) -> Table | None:
    rows = columns.rows(
        of_task(findings.agreement, task),
        {"first_label": ("first", columns.name), "second_label": ("second", columns.name),
         "both": ("both right %", columns.score), "first_only": ("only the first %", columns.score),
         "second_only": ("only the second %", columns.score), "neither": ("neither %", columns.score)},
    )  # fmt: skip
    return table(f"agreement-{slug(task)}", rows, list(rows[0])[2:] if rows else (),
                 caption="Share of images, mean over pairs of seeds.")  # fmt: skip


def _classes(findings: Findings, task: str) -> list[Table | None]:
    """The classes with the largest differences between the best arm and each other one."""
    pairs = of_task(findings.classes, task).groupby(["first", "second"], sort=False)
    return [_class_differences(task, pair) for _, pair in pairs]


def _class_differences(task: str, pair: pd.DataFrame) -> Table | None:
    first, second = (escaped(str(pair[column].iloc[0])) for column in ("first_label", "second_label"))
    order = pair["difference"].abs().sort_values(ascending=False, kind="stable").index[:CLASSES_SHOWN]
    largest = pair.loc[order].sort_values("difference", ascending=False, kind="stable")
    rows = [
        {
            "class": columns.name(row["class_name"]),
            "images": columns.count(row["images"]),
            f"{first} %": columns.score(row["first_score"]),
            f"{second}  %": columns.score(row["second_score"]),
            "difference": _bold_if_significant(row["difference"], row["p_adjusted"]),
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


def _bold_if_significant(value: float, p: float) -> str:
    return f"**{points(value)}**" if p <= 0.05 else columns.difference(value)


def _flips(findings: Findings, task: str) -> Table | None:
    """Ids of the images on which two arms disagree most consistently over seeds."""
    rows = [
        {
            "first": escaped(flip.first), "second": escaped(flip.second),
            "only the first is right": _ids(flip.won), "only the second is right": _ids(flip.lost),
        }
        for flip in findings.flips
        if flip.task == task
    ]  # fmt: skip
    return table(f"flips-{slug(task)}", rows, folded="Images that one arm gets right and the other wrong",
                 caption="Ids in the stored predictions, surest first.")  # fmt: skip


def _ids(ids: tuple[str, ...]) -> str:
    return ", ".join(escaped(name) for name in ids) or NO_VALUE
