"""Pairwise comparison of the arms of one task: which differences exceed the variance over images and between seeds.

A difference raises two questions. Would these trained models differ on other images of the same kind? Would the
methods differ if they were trained with other seeds? Where every arm was trained several times, one interval answers
both (`variance_components`); where one was trained once, only the first can be answered, and the verdict says so.
Holm's correction is over all pairs of a task. Arms with different protocols have no difference at all
(`comparability`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from bench.reporting.analysis.comparability import Guard
from bench.reporting.analysis.outcomes import Outcomes, ScoredArm
from bench.stats import bootstrap, intervals, variance_components
from bench.stats.intervals import ALPHA, LEVEL, Discordant, Interval, Spread
from bench.stats.variance_components import ArmUnits, Design, Estimate, Scope, SeedVariance

TIE = 1e-9  # points: below this two means differ only by rounding
Verdict = Literal["different", "different fine-tunings", "different weights", "images", "retraining", "not comparable"]
MEANING: dict[Verdict, str] = {
    "different": "different: more than the luck of images and of retraining",
    "different fine-tunings": "different for these pretrained weights, fine-tuned again; pretraining was not repeated",
    "different weights": "different on other images too; retraining was not repeated",
    "images": "not distinguishable: other images could turn it round",
    "retraining": "not distinguishable: training again could turn it round",
    "not comparable": "not comparable: the protocols differ",
}
VERDICT_OF_SCOPE: dict[Scope, Verdict] = {
    "methods": "different", "fine-tunings": "different fine-tunings", "weights": "different weights",
}  # fmt: skip


class SeedNoise(NamedTuple):
    """Standard deviation between trainings that differ only in their seed, pooled over arms."""

    sd: float
    df: int  # degrees of freedom of `sd`


@dataclass(frozen=True, slots=True)
class Score:
    """An arm's score on its task, in percent, with its intervals over images and over seeds."""

    arm: ScoredArm
    spread: Spread
    interval: Interval  # over other images
    seeds_interval: Interval | None  # over other images and seeds; None: trained once
    design: Design
    training_scores: np.ndarray  # (S,)
    not_ranked_because: tuple[str, ...] = ()  # why it is not ranked with the reportable arms
    probability_best: float = nan  # of being the highest of its task


@dataclass(frozen=True, slots=True)
class Difference:
    """`first` minus `second`, in points; without a value where their protocols differ.

    The fields are the keys of report.json.
    """

    first: str
    second: str
    value: float
    interval: Interval  # over other images, and over seeds where both arms were trained several times
    images_interval: Interval  # paired bootstrap over images
    p: float
    p_adjusted: float  # by Holm over the pairs of the task
    by_retraining: float | None  # least significant difference between seeds: up to here seeds alone explain it
    by_seed: dict[int, Discordant]  # exact McNemar of the models with the same seed; right or wrong only
    verdict: Verdict
    scope: Scope
    freedom: float  # degrees of freedom of `interval`; infinite for weights
    conflicts: tuple[str, ...] = ()  # 'resolution 224 vs 384'
    allowed: tuple[str, ...] = ()  # conflicts that --allow permits

    @property
    def told_apart(self) -> bool:
        """Whether the difference is significant after Holm's correction."""
        return self.verdict.startswith("different")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scores and pairwise differences of the arms of one task that have a score, in the order of the plan."""

    task: str
    metric: str
    images: int
    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]  # every pair once, both in the order of the plan
    seed_noise: SeedNoise | None
    measure: str = ""  # '' for the headline metric

    @property
    def ranked(self) -> list[Score]:
        """Highest mean first; equal means in the order of the plan; without `unranked`."""
        scores = (score for score in self.scores if not score.not_ranked_because)
        return sorted(scores, key=lambda score: -score.spread.mean)

    @property
    def unranked(self) -> list[Score]:
        """Arms that are not reportable, beside arms that are."""
        return [score for score in self.scores if score.not_ranked_because]

    def between(self, first: str, second: str) -> Difference:
        """The difference of two arms in this order."""
        for difference in self.differences:
            if (difference.first, difference.second) == (first, second):
                return difference
            if (difference.first, difference.second) == (second, first):
                return _negate(difference)
        raise KeyError((first, second))

    def highest(self) -> list[str]:
        """Ids of the arms with the highest mean: several when they are equal."""
        return [s.arm.planned.id for s in self.ranked if s.spread.mean >= self.ranked[0].spread.mean - TIE]

    def like_best(self) -> list[str]:
        """Ids of the best arm and of those that do not differ from it significantly."""
        if not self.ranked:
            return []
        best, *others = [score.arm.planned.id for score in self.ranked]
        differences = {other: self.between(best, other) for other in others}
        return [best, *(other for other, d in differences.items() if not d.told_apart and not d.conflicts)]


class _Inputs(NamedTuple):
    """What the differences of a task are computed from."""

    units: dict[str, ArmUnits]  # by id of the arm
    variances: dict[Scope, SeedVariance | None]  # between seeds, shared by all arms of a scope
    guard: Guard | None


def compare_arms(
    task: str, arms: Sequence[ScoredArm], replicates: int = bootstrap.REPLICATES, *, outcomes: Outcomes | None = None,
    guard: Guard | None = None, measure: str = "",
) -> Comparison:  # fmt: skip
    """Scores and differences of the arms of one task that have at least one finished seed.

    replicates: of the bootstrap over images. outcomes: says which seeds share a pretraining; without it none do.
    guard: says which arms may be subtracted; without it all. measure: other than the headline metric.
    """
    scored = [arm for arm in arms if arm.seeds]
    metric = measure or arms[0].planned.metric
    inputs = _inputs(scored, replicates, outcomes, guard)
    images = len(scored[0].seeds[0].ids) if scored else 0
    right = all(arm.is_right_or_wrong for arm in scored)
    scores = _with_probability_best([_score(arm, inputs, scored, images if right else 0) for arm in scored], inputs)
    shared = inputs.variances["methods"] or inputs.variances["fine-tunings"]
    seed_noise = SeedNoise(shared.observed**0.5, shared.df) if shared else None
    return Comparison(task, metric, images, scores, _differences(scores, inputs), seed_noise, measure)


def _inputs(arms: Sequence[ScoredArm], replicates: int, outcomes: Outcomes | None, guard: Guard | None) -> _Inputs:
    """The bootstrap of all arms together, and the variance between the seeds of each."""
    counts = {arm.planned.id: arm.counts() for arm in arms}
    resampled = bootstrap.bootstrap(counts, replicates)
    units = {
        arm.planned.id: variance_components.arm_units(
            _design(arm, outcomes), bootstrap.scores(counts[arm.planned.id]), resampled[arm.planned.id]
        )
        for arm in arms
    }
    return _Inputs(units, _shared_variances(list(units.values())), guard)


def _design(arm: ScoredArm, outcomes: Outcomes | None) -> Design:
    if outcomes is None:
        return Design(tuple(f"{arm.planned.id} {result.seed}" for result in arm.seeds))
    return Design(tuple(outcomes.pretraining_of(arm.planned, result.seed) for result in arm.seeds))


def _shared_variances(arms: Sequence[ArmUnits]) -> dict[Scope, SeedVariance | None]:
    """The between-seed variance that arms with the same kind of units share."""
    variances: dict[Scope, SeedVariance | None] = {"weights": None}
    scopes: tuple[Scope, ...] = ("methods", "fine-tunings")
    for scope in scopes:
        variances[scope] = variance_components.pooled_variance([arm for arm in arms if arm.design.scope == scope])
    return variances


def _score(arm: ScoredArm, inputs: _Inputs, others: Sequence[ScoredArm], images: int) -> Score:
    """images: of right or wrong answers, for Wilson's interval; 0 for ratios of areas."""
    units = inputs.units[arm.planned.id]
    sd = float(units.scores.std(ddof=1)) if units.df else None
    spread = Spread(units.mean, sd, units.design.trainings)
    replicates = units.replicates.mean(0)
    estimate = variance_components.estimate_score(units, inputs.variances[units.design.scope])
    return Score(
        arm,
        spread,
        intervals.wilson(spread.mean, images) if images else intervals.percentile_interval(replicates),
        _t_interval(estimate)[0] if estimate else None,
        units.design,
        bootstrap.scores(arm.counts()),
        inputs.guard.not_ranked_because(arm, others) if inputs.guard else (),
    )


def _t_interval(estimate: Estimate) -> tuple[Interval, float]:
    return intervals.t_interval(estimate.value, estimate.standard_error, estimate.df)


def _with_probability_best(scores: Sequence[Score], inputs: _Inputs) -> tuple[Score, ...]:
    """The scores with the probability of being the highest, over other images and, where known, other seeds."""
    ranked = [score for score in scores if not score.not_ranked_because]
    if not ranked:
        return tuple(scores)
    probabilities = probabilities_best([inputs.units[score.arm.planned.id] for score in ranked], inputs.variances)
    by_arm = dict(zip((score.arm.planned.id for score in ranked), probabilities, strict=True))
    return tuple(replace(score, probability_best=by_arm.get(score.arm.planned.id, nan)) for score in scores)


def probabilities_best(arms: Sequence[ArmUnits], variances: Mapping[Scope, SeedVariance | None]) -> list[float]:
    """Share of bootstrap replicates in which each arm is the highest; arms that tie in a replicate divide it.

    A replicate resamples the images and, where the variance between seeds is known, adds a deviation by seeds from
    Student's t.
    """
    generator = np.random.default_rng(1)  # not 0: independent of the resampling weights of the bootstrap
    replicates = np.stack([arm.replicates.mean(0) + _seed_deviations(arm, variances, generator) for arm in arms])
    highest = replicates >= replicates.max(0) - TIE  # (arms, B)
    return (highest / highest.sum(0)).mean(1).tolist()


def _seed_deviations(
    arm: ArmUnits, variances: Mapping[Scope, SeedVariance | None], generator: np.random.Generator
) -> np.ndarray:
    """Random deviations (B,) of an arm's mean by other seeds; 0 for a single training."""
    variance = variances[arm.design.scope] or variance_components.seed_variance(arm)
    if not variance.df:
        return np.zeros(arm.replicates.shape[1])
    standard_error = (variance.net / len(arm.scores)) ** 0.5
    return standard_error * generator.standard_t(variance.df, arm.replicates.shape[1])


def _differences(scores: Sequence[Score], inputs: _Inputs) -> tuple[Difference, ...]:
    """Every pair, first without regard to the others, then by Holm's correction."""
    pairs = [_difference(a, b, inputs) for i, a in enumerate(scores) for b in scores[i + 1 :]]
    adjusted = intervals.holm([difference.p for difference, _ in pairs])
    by_images = intervals.holm([p for _, p in pairs])
    return tuple(
        replace(difference, p_adjusted=p, verdict=_verdict(difference, p, images))
        for (difference, _), p, images in zip(pairs, adjusted, by_images, strict=True)
    )


def _difference(first: Score, second: Score, inputs: _Inputs) -> tuple[Difference, float]:
    """One pair before Holm's correction, and its p over images alone."""
    names = first.arm.planned.id, second.arm.planned.id
    a, b = (inputs.units[name] for name in names)
    conflicts, allowed = inputs.guard.split_conflicts(*names) if inputs.guard else ((), ())
    scope = variance_components.scope_of(a.design, b.design)
    if conflicts:
        nothing = Interval(nan, nan)
        return Difference(*names, nan, nothing, nothing, nan, nan, None, {}, "not comparable", scope, nan,
                          conflicts, allowed), nan  # fmt: skip
    replicates = a.replicates.mean(0) - b.replicates.mean(0)
    by_seed = _mcnemar_by_seed(first.arm, second.arm)
    interval = images_interval = intervals.percentile_interval(replicates)
    p = by_images = _images_p(replicates, by_seed, first, second)
    estimate = variance_components.estimate_difference(a, b, inputs.variances[scope])
    if estimate:
        interval, p = _t_interval(estimate)
    difference = Difference(
        *names, a.mean - b.mean, interval, images_interval, p, nan,
        _least_significant(inputs.variances[scope], a, b), by_seed, "images", scope,
        estimate.df if estimate else np.inf, conflicts, allowed,
    )  # fmt: skip
    return difference, by_images


def _images_p(replicates: np.ndarray, by_seed: Mapping[int, Discordant], first: Score, second: Score) -> float:
    """Exact for two models that are right or wrong; by the bootstrap for means over seeds and for areas."""
    if first.spread.n == second.spread.n == 1 and by_seed:
        return next(iter(by_seed.values())).p
    return intervals.bootstrap_p(replicates)


def _least_significant(shared: SeedVariance | None, first: ArmUnits, second: ArmUnits) -> float | None:
    """Least significant difference of two means: seeds alone exceed it in 5 % of studies."""
    if shared is None or not first.df or not second.df:
        return None
    t = float(stats.t.ppf(0.5 + LEVEL / 2, shared.df))
    return t * float(np.sqrt(shared.observed * (1 / len(first.scores) + 1 / len(second.scores))))


def _verdict(difference: Difference, p_adjusted: float, by_images: float) -> Verdict:
    """p_adjusted, by_images: after Holm's correction, over images and seeds and over images alone."""
    if difference.conflicts:
        return "not comparable"
    if p_adjusted <= ALPHA:
        return VERDICT_OF_SCOPE[difference.scope]
    return "images" if by_images > ALPHA else "retraining"


def _mcnemar_by_seed(first: ScoredArm, second: ScoredArm) -> dict[int, Discordant]:
    """Exact McNemar of the models with the same seed; where no seed is the same, of the first ones."""
    if not (first.is_right_or_wrong and second.is_right_or_wrong):
        return {}
    others = {result.seed: result for result in second.seeds}
    pairs = [(result, others[result.seed]) for result in first.seeds if result.seed in others]
    return {
        a.seed: intervals.mcnemar(a.hits[:, 0] > 0, b.hits[:, 0] > 0)
        for a, b in pairs or [(first.seeds[0], second.seeds[0])]
    }


def _negate(difference: Difference) -> Difference:
    by_seed = {seed: Discordant(d.second_only, d.first_only, d.p) for seed, d in difference.by_seed.items()}
    return replace(
        difference, first=difference.second, second=difference.first, value=-difference.value,
        interval=_negate_interval(difference.interval), images_interval=_negate_interval(difference.images_interval),
        by_seed=by_seed,
    )  # fmt: skip


def _negate_interval(interval: Interval) -> Interval:
    return Interval(-interval.high, -interval.low)
