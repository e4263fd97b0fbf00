"""Summary of a study in plain sentences, each of them generated from numbers of the report."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bench.reporting.analysis.comparability import Guard
from bench.reporting.analysis.comparisons import MEANING, Comparison, Difference, Score
from bench.reporting.analysis.outcomes import Outcomes, label_of
from bench.reporting.analysis.tables import interval_text
from bench.reporting.formatting import PLUS_MINUS, amount, escaped, listed, metric_name, p_value, points

# ViT-B trained for 300 epochs on the 1,281,167 images of ImageNet-1k: the smallest budget of the methods' papers at
# base size (arXiv 2012.12877, Tables 1 and 9).
PUBLISHED_IMAGES = 300 * 1_281_167
PUBLISHED_PARAMETERS = 86e6
SMALL = 0.1  # below this share of the published scale an order found here says little about it


def _name(score: Score) -> str:
    return escaped(label_of(score.arm.planned))


def of_task(comparison: Comparison, table: pd.DataFrame) -> list[str]:
    """What the runs of one task say: the best arm, how far it leads, how sure that is, what it cost."""
    metric, ranked = metric_name(comparison.metric), comparison.ranked
    if not ranked:
        return [f"On {escaped(comparison.task)} no arm has a score yet."]
    best, highest = ranked[0], comparison.highest()
    names = listed([f"**{_name(score)}**" for score in ranked if score.arm.planned.id in highest])
    verb = "is highest" if len(highest) == 1 else "share the highest score"
    sentences = [
        f"On {escaped(comparison.task)} ({metric}, {comparison.images} images) {names} {verb}: "
        f"{best.spread.mean:.2f} %{_deviation(best)}, 95 % interval over images {interval_text(best.interval)}."
    ]
    sentences += _against(comparison, ranked)
    return [*sentences, *_cost(best, table)]


def _deviation(score: Score) -> str:
    n = score.spread.n
    return " (one seed)" if score.spread.sd is None else f" {PLUS_MINUS} {score.spread.sd:.2f} (sd of {n} seeds)"


def _against(comparison: Comparison, ranked: Sequence[Score]) -> list[str]:
    """The best arm against each of the others: first those it cannot be told apart from."""
    best, *others = ranked
    pairs = [(other, comparison.between(best.arm.planned.id, other.arm.planned.id)) for other in others]
    alike = [_name(other) for other, pair in pairs if not pair.told_apart and not pair.conflicts]
    sentences = [f"{_name(best)} cannot be told apart from {listed(alike)}."] if alike else []
    sentences += [_difference(other, pair, comparison) for other, pair in pairs]
    if len(ranked) > 1:
        share = f"{100 * best.probability_best:.0f} of 100 draws of images and trainings"
        sentences.append(f"{_name(best)} is first in {share}.")
    return sentences


def _difference(other: Score, difference: Difference, comparison: Comparison) -> str:
    if difference.conflicts:
        return f"Against {_name(other)}: not comparable ({escaped('; '.join(difference.conflicts), 400)})."
    low, high = difference.interval
    tests = sum(not pair.conflicts for pair in comparison.differences)
    return (
        f"{points(difference.value)} points over {_name(other)} (95 % interval {points(low)} to {points(high)}, "
        f"{p_value(difference.p_adjusted)} after Holm's correction for {tests} comparisons): "
        f"{MEANING[difference.verdict]}."
    )


def _cost(best: Score, table: pd.DataFrame) -> list[str]:
    """How much more the best arm cost than the cheapest one."""
    rows = table[(table["task"] == best.arm.planned.task) & table["score"].notna()].set_index("arm")
    hours = rows["device_hours_all"].dropna()
    if len(hours) < 2 or best.arm.planned.id not in hours.index or hours.min() <= 0:
        return []
    own, cheapest = hours[best.arm.planned.id], str(hours.idxmin())
    known = "" if len(hours) == len(rows) else " of the arms whose whole cost is known"
    if cheapest == best.arm.planned.id:
        return [f"It is also the cheapest to train{known}: {amount(own)} device-hours with all upstream stages."]
    return [
        f"Its training took {amount(own)} device-hours with all upstream stages, {amount(own / hours.min())} times "
        f"those of {escaped(str(rows.loc[cheapest, 'label']) or cheapest)} ({amount(hours.min())})."
    ]


def limits(outcomes: Outcomes, comparisons: Sequence[Comparison], table: pd.DataFrame, guard: Guard) -> list[str]:
    """What cannot be concluded, and why."""
    return [
        *[sentence for comparison in comparisons for sentence in _seeds(comparison)],
        *_shared(outcomes),
        *_scale(table),
        *_departures(table),
        "Each arm ran with one recipe. Where recipes were not tuned equally well for this data, a difference is one "
        "of recipes as much as one of methods.",
        *_not_reportable(outcomes, guard),
    ]


def _seeds(comparison: Comparison) -> list[str]:
    """How often arms were trained, and what follows from it for methods."""
    if not comparison.scores:
        return []
    task, noise = escaped(comparison.task), comparison.seed_noise
    once = [score for score in comparison.scores if score.design.scope == "weights"]
    if len(once) == len(comparison.scores) or noise is None:
        return [
            f"{task}: every arm was trained once, so nothing is known about what training again would give; "
            "differences are of these weights, not of methods."
        ]
    fewest = min(score.design.pretrainings for score in comparison.scores)
    limit = max((d.by_retraining or 0.0 for d in comparison.differences), default=0.0)
    between = f"; a difference of up to {limit:.2f} points between two arms is within that noise" if limit else ""
    few = f" With {fewest} seeds per arm this spread is itself known only roughly." if 1 < fewest < 5 else ""
    return [
        f"{task}: training again with another seed moves a score by about {noise.sd:.2f} points (standard deviation "
        f"pooled over arms, {noise.df} degrees of freedom){between}.{few}",
        *_narrow(comparison, once),
    ]


def _narrow(comparison: Comparison, once: Sequence[Score]) -> list[str]:
    """Arms whose differences say nothing about their method."""
    sentences = [
        f"{_name(score)} was trained once: its differences are of these weights, not of methods." for score in once
    ]
    return sentences + [
        f"{_name(score)} rests on {score.design.sentence}; its differences are of this pretraining, not of the method."
        for score in comparison.scores
        if score.design.scope == "fine-tunings"
    ]


def _shared(outcomes: Outcomes) -> list[str]:
    """Stages that all seeds of an arm share: their effect is the same in every seed, so the spread lacks it."""
    shared: dict[str, list[str]] = {}
    for arm in outcomes.arms.values():
        chains = [{run.key for run in outcomes.upstream(arm.planned, result.seed)} for result in arm.seeds]
        common = set.intersection(*chains) if len(chains) > 1 else set()
        kinds = sorted({outcomes.stages[key].stage.kind for key in common})
        if kinds:
            shared.setdefault(listed(kinds), []).append(escaped(label_of(arm.planned)))
    return [
        f"The seeds of {listed(list(dict.fromkeys(arms)))} share one {kinds}: its luck is in every seed and not in "
        "the spread."
        for kinds, arms in shared.items()
    ]


def _scale(table: pd.DataFrame) -> list[str]:
    """A warning when the training here is small beside the published one."""
    images, parameters = table["images_all"].max(), table["parameters"].max()
    if not (images < SMALL * PUBLISHED_IMAGES or parameters < SMALL * PUBLISHED_PARAMETERS):
        return []
    return [
        f"Scale: the longest training here saw {amount(images)} images (repeats and upstream counted) with at most "
        f"{amount(parameters)} parameters. Published numbers of these methods at base size rest on "
        f"{amount(PUBLISHED_IMAGES)} images or more and {amount(PUBLISHED_PARAMETERS)} parameters; the order found "
        "here is no evidence for that scale."
    ]


def _departures(table: pd.DataFrame) -> list[str]:
    departing = [escaped(row["label"] or row["arm"]) for row in table.to_dict("records") if row["notes"]]
    if not departing:
        return []
    return [f"Departs from its published recipe (see the notes): {listed(list(dict.fromkeys(departing)))}."]


def _not_reportable(outcomes: Outcomes, guard: Guard) -> list[str]:
    """Arms that cannot stand beside reportable ones, and why."""
    because: dict[str, list[str]] = {}
    for arm in outcomes.plan.arms:
        if reasons := guard.reasons[arm.id]:
            because.setdefault(escaped("; ".join(reasons), 400), []).append(escaped(label_of(arm)))
    return [f"Not reportable: {listed(list(dict.fromkeys(names)))} ({why})." for why, names in because.items()]
