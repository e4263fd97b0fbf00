"""Tables of a report: its numbers as pandas frames, and the same numbers as rows of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.config.stage import PlannedArm
from bench.reporting.analysis.comparisons import MEANING, Comparison, Difference, Score
from bench.reporting.analysis.departures import Notes
from bench.reporting.analysis.outcomes import Outcomes, ScoredArm, StageRun, label_of
from bench.reporting.formatting import ALIKE, MINUS, NO_VALUE, PLUS_MINUS, amount, escaped, metric_name, p_value, points

SECONDS_PER_HOUR = 3600.0
LONGEST_REASON = 400
LEARNED = ("pretrain", "supervised")  # upstream stages that train the backbone itself


def main(outcomes: Outcomes, comparisons: Sequence[Comparison], notes: Notes) -> pd.DataFrame:
    """One row per arm and task, with or without a score: what it reached, how sure that is, what it cost."""
    rows = []
    for comparison in comparisons:
        scores = {score.arm.planned.id: score for score in comparison.scores}
        alike, highest = comparison.like_best(), comparison.highest()
        for arm in outcomes.of_task(comparison.task):
            score = scores.get(arm.planned.id)
            rows.append(
                {
                    **_names(arm.planned),
                    **_score(arm, score, comparison),
                    **_standing(score),
                    "best": arm.planned.id in highest,
                    "like_best": arm.planned.id in alike,
                    "starts_from": outcomes.pretrained_weights(arm.planned),
                    **costs(outcomes, arm),
                    "fidelity": arm.planned.fidelity,
                    "reportable": is_reportable(outcomes, arm.planned),
                    "notes": " ".join(str(number) for number in notes.of_arm[arm.planned.id]),
                }
            )
    return pd.DataFrame(rows)


def _names(arm: PlannedArm) -> dict[str, Any]:
    fields = ("task", "id", "label", "method", "variant", "size", "budget", "metric")
    return {("arm" if field == "id" else field): getattr(arm, field) for field in fields}


def _score(arm: ScoredArm, score: Score | None, comparison: Comparison) -> dict[str, Any]:
    low, high = score.interval if score else (math.nan, math.nan)
    return {
        "score": score.spread.mean if score else math.nan,
        "sd": score.spread.sd if score and score.spread.sd is not None else math.nan,
        "seeds": len(arm.seeds),
        "seeds_planned": len(arm.planned.stages),
        "low": low,
        "high": high,
        "images_scored": comparison.images if score else 0,
    }


def _standing(score: Score | None) -> dict[str, Any]:
    """On how many independent trainings a score rests, and where it ranks."""
    low, high = score.seeds_interval if score and score.seeds_interval else (math.nan, math.nan)
    return {
        "design": score.design.sentence if score else "",
        "pretrainings": score.design.pretrainings if score else 0,
        "low_retrained": low,
        "high_retrained": high,
        "first": score.probability_best if score else math.nan,
        "apart": "; ".join(score.not_ranked_because) if score else "",
    }


def costs(outcomes: Outcomes, arm: ScoredArm) -> dict[str, float]:
    """What an arm's training took, mean over its finished seeds; upstream stages count in full for every arm.

    images: seen by the network, counted with repetition. device_hours: seconds of training times devices. What counts
    upstream stages is not-a-number for an arm that starts from pretrained weights.
    """
    chains = [(outcomes.last_stage(arm.planned, s.seed), outcomes.upstream(arm.planned, s.seed)) for s in arm.seeds]
    backbones = [[run for run in upstream if run.stage.kind in LEARNED] for _, upstream in chains]

    def mean(value: Callable[[StageRun, list[StageRun]], float]) -> float:
        return float(np.mean([value(last, upstream) for last, upstream in chains])) if chains else math.nan

    # nobody counted what the training of pretrained weights took: NaN makes every sum with it unknown
    before = math.nan if outcomes.pretrained_weights(arm.planned) else 0.0

    def own_known_all(fact: str, unit: float = 1.0) -> tuple[float, float, float]:
        """Of the last stage; with upstream stages; the same, unknown after pretrained weights."""
        own = mean(lambda last, _: last.number(fact)) / unit
        known = own + mean(lambda _, upstream: sum(run.number(fact) for run in upstream)) / unit
        return own, known, known + before

    totals = {
        "images": own_known_all("images"),
        "device_hours": own_known_all("device_seconds", SECONDS_PER_HOUR),
        "flops": own_known_all("flops"),
    }
    epochs = [sum(run.number("epochs") for run in stages) for stages in backbones]
    return {
        "parameters": mean(lambda last, _: _parameters(last)),
        "pretraining_epochs": before + float(np.mean(epochs)) if epochs else math.nan,
        "pretraining_epochs_known": float(np.mean(epochs)) if epochs else math.nan,
        **{
            f"{fact}_{part}": value
            for fact, values in totals.items()
            for part, value in zip(("own", "known", "all"), values, strict=True)
        },
    }


def _parameters(last: StageRun) -> float:
    """Of the network that is scored: all that its stage trains, so no teacher; for a probe the frozen trunk too."""
    return last.number("parameters" if last.stage.kind == "probe" else "trainable")


def is_reportable(outcomes: Outcomes, arm: PlannedArm) -> bool:
    """Whether every stage of the arm saw its data whole: no --limit, no incomplete copy."""
    return not shortfalls(outcomes, arm)


def shortfalls(outcomes: Outcomes, arm: PlannedArm) -> list[str]:
    """What was left out of the data of an arm's stages: 'imagenet/val: 49,983 of 50,000 images'."""
    keys = dict.fromkeys(key for roles in arm.stages.values() for key in roles.values())
    splits = [data for key in keys for data in outcomes.plan.stages[key].data.values()]
    return list(dict.fromkeys(f"{data.dataset}/{data.split}: {data.shortfall}" for data in splits if data.shortfall))


def main_rows(frame: pd.DataFrame) -> list[dict[str, str]]:
    """The rows of `main` as text; bold: best, and the sign for those that cannot be told apart from it."""
    rows = [_main_row(row) for row in frame.to_dict("records")]
    columns = [name for name in rows[0] if name not in OPTIONAL or any(row[name] for row in rows)] if rows else []
    return [{name: row[name] for name in columns} for row in rows]


OPTIONAL = ("not ranked, because",)  # columns that stand only where they say something


def _main_row(row: Mapping[Any, Any]) -> dict[str, str]:
    notes = row["notes"].split()
    return {
        "arm": escaped(row["label"] or row["arm"]),
        f"{metric_name(row['metric'])} % \u2191": score_text(row),
        "95 % interval": _interval_or_none(row["low"], row["high"]),
        "with training again": _interval_or_none(row["low_retrained"], row["high_retrained"]),
        "trained": escaped(row["design"]) or NO_VALUE,
        "first in": share(row["first"]),
        "parameters": amount(row["parameters"]),
        "fidelity": row["fidelity"],
        "departures": ", ".join(f"[{n}](#note-{n})" for n in notes) or "none",
        "not ranked, because": escaped(row["apart"], LONGEST_REASON),
    }


def cost_rows(frame: pd.DataFrame) -> list[dict[str, str]]:
    """Costs of every arm as text: the last stage alone, and with all upstream stages."""
    return [
        {
            "arm": escaped(row["label"] or row["arm"]),
            "pretraining epochs": "0" if row["pretraining_epochs"] == 0 else _cost(row, "pretraining_epochs"),
            **{
                f"{name}: {who}": _cost(row, f"{fact}_{part}")
                for fact, name in (("images", "images"), ("flops", "FLOPs"), ("device_hours", "device-hours"))
                for part, who in (("own", "own stage"), ("all", "with upstream"))
            },
        }
        for row in frame.to_dict("records")
    ]


def _cost(row: Mapping[Any, Any], fact: str) -> str:
    """A cost; that of pretrained weights is unknown and said to be."""
    if not row["starts_from"] or fact.endswith("_own"):
        return amount(row[fact])
    known = row[f"{fact.removesuffix('_all')}_known"]
    return f"{'0' if known == 0 else amount(known)} plus what {escaped(row['starts_from'].partition(' ')[0])} took"


def share(value: float) -> str:
    """A probability in percent; what is not quite certain is not shown as certain."""
    if math.isnan(value):
        return NO_VALUE
    return "> 99 %" if 0.995 <= value < 1 else "< 1 %" if 0 < value < 0.005 else f"{100 * value:.0f} %"


def _interval_or_none(low: float, high: float) -> str:
    return NO_VALUE if math.isnan(low) else interval_text((low, high))


def interval_text(interval: tuple[float, float]) -> str:
    """'70.1 to 73.2', with two decimals."""
    return f"{interval[0]:.2f} to {interval[1]:.2f}"


def score_text(row: Mapping[Any, Any]) -> str:
    """'**71.20 +- 0.31** (2)': mean, sd and number of seeds."""
    if math.isnan(row["score"]):
        return f"no result ({row['seeds']} of {row['seeds_planned']})"
    text = f"{row['score']:.2f}" + ("" if math.isnan(row["sd"]) else f" {PLUS_MINUS} {row['sd']:.2f}")
    planned = "" if row["seeds"] == row["seeds_planned"] else f" of {row['seeds_planned']}"
    mark = "" if row["reportable"] else " (not reportable)"
    marked = f"**{text}**" if row["best"] else f"{text} {ALIKE}" if row["like_best"] else text
    return f"{marked} ({row['seeds']}{planned}){mark}"


def extra(outcomes: Outcomes) -> pd.DataFrame:
    """Every other score of the evaluations, in long form: task, arm, metric, mean, sd, seeds."""
    rows = []
    for arm in outcomes.arms.values():
        names = dict.fromkeys(name for result in arm.seeds for name in sorted(result.metrics))
        for name in (name for name in names if name != arm.planned.metric):
            values = [result.metrics[name] for result in arm.seeds if name in result.metrics]
            sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
            label = label_of(arm.planned)
            rows.append((arm.planned.task, arm.planned.id, label, name, float(np.mean(values)), sd, len(values)))
    return pd.DataFrame(rows, columns=["task", "arm", "label", "metric", "mean", "sd", "seeds"])


def extra_rows(frame: pd.DataFrame, task: str) -> list[dict[str, str]]:
    """Other scores of a task, an arm per row and a metric per column."""
    here = frame[frame["task"] == task]
    metrics = sorted(here["metric"].unique())
    rows = []
    for _, own in here.groupby("arm", sort=False):
        values = {row["metric"]: row for row in own.to_dict("records")}
        cells = {metric_name(m): _mean_and_sd(values[m]) if m in values else NO_VALUE for m in metrics}
        rows.append({"arm": escaped(own["label"].iloc[0]), **cells})
    return rows


def _mean_and_sd(row: Mapping[Any, Any]) -> str:
    decimals = 3 if row["metric"].startswith("loss") else 2
    sd = "" if math.isnan(row["sd"]) else f" {PLUS_MINUS} {row['sd']:.{decimals}f}"
    return f"{row['mean']:.{decimals}f}{sd}"


PAIR_COLUMNS = [
    "task", "metric", "first", "second", "first_label", "second_label", "difference", "low", "high", "low_images",
    "high_images", "p", "p_adjusted", "by_retraining", "freedom", "scope", "verdict", "told_apart", "conflicts",
]  # fmt: skip


def differences(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """One row per pair of arms of a task, `first` minus `second`, in points; not-a-number where there is no value."""
    rows = []
    for comparison in comparisons:
        labels = {score.arm.planned.id: label_of(score.arm.planned) for score in comparison.scores}
        rows += [
            (comparison.task, comparison.metric, pair.first, pair.second, labels[pair.first], labels[pair.second],
             pair.value, *pair.interval, *pair.images_interval, pair.p, pair.p_adjusted,
             math.nan if pair.by_retraining is None else pair.by_retraining, pair.freedom, pair.scope, pair.verdict,
             pair.told_apart, "; ".join(pair.conflicts))
            for pair in comparison.differences
        ]  # fmt: skip
    return pd.DataFrame(rows, columns=PAIR_COLUMNS)


def matrix_rows(comparison: Comparison) -> list[dict[str, str]]:
    """Differences of every pair: the arm of the row minus the arm of the column, in points, with 95 % intervals."""
    names = {score.arm.planned.id: escaped(label_of(score.arm.planned)) for score in comparison.scores}
    return [
        {
            f"row {MINUS} column": names[first],
            **{names[second]: "" if first == second else _cell(comparison.between(first, second)) for second in names},
        }
        for first in names
    ]


ALLOWED = "\u2021"  # behind a difference between rows whose protocols differ, shown all the same


def _cell(difference: Difference) -> str:
    if difference.conflicts:
        return f"not comparable: {escaped('; '.join(difference.conflicts), LONGEST_REASON)}"
    low, high = difference.interval
    text = f"{points(difference.value)} [{points(low)}, {points(high)}]{ALLOWED if difference.allowed else ''}"
    return f"**{text}**" if difference.told_apart else f"{text} {ALIKE}"


def pair_rows(comparison: Comparison) -> list[dict[str, str]]:
    """The tests behind every difference."""
    names = {score.arm.planned.id: escaped(label_of(score.arm.planned)) for score in comparison.scores}
    return [
        {"pair": f"{names[difference.first]} {MINUS} {names[difference.second]}", **_tests(difference)}
        for difference in comparison.differences
    ]


def _tests(difference: Difference) -> dict[str, str]:
    comparable = not difference.conflicts
    seeds, noise = comparable and difference.scope != "weights", difference.by_retraining
    return {
        "difference": points(difference.value) if comparable else NO_VALUE,
        "over images": points_text(difference.images_interval) if comparable else NO_VALUE,
        "with training again": points_text(difference.interval) if seeds else NO_VALUE,
        "p": p_value(difference.p) if comparable else NO_VALUE,
        "after Holm": p_value(difference.p_adjusted) if comparable else NO_VALUE,
        "exact McNemar by seed": _mcnemar(difference),
        "retraining noise": NO_VALUE if noise is None else f"{noise:.2f}",
        "speaks of": difference.scope,
        "verdict": MEANING[difference.verdict],
    }


def points_text(interval: tuple[float, float]) -> str:
    """'-0.10 to +2.31'."""
    return f"{points(interval[0])} to {points(interval[1])}"


def allowed_texts(comparison: Comparison) -> list[str]:
    """Conflicts that --allow permits, once each."""
    return list(dict.fromkeys(escaped(text, LONGEST_REASON) for d in comparison.differences for text in d.allowed))


def _mcnemar(difference: Difference) -> str:
    by_seed = sorted(difference.by_seed.items())
    return "; ".join(f"{seed}: {d.first_only}/{d.second_only}, {p_value(d.p)}" for seed, d in by_seed) or NO_VALUE
