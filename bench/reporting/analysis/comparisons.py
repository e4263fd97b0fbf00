"""Arms against each other on one task: which differences are more than the luck of images and of training.

Two questions are asked of a difference. Would these trained models differ on other images of the same kind? Would the
methods differ if they were trained again? Where every arm was trained several times, one interval answers both
(`components`); where one was trained once, only the first can be answered, and the verdict says so. Holm's correction
is over all pairs of a task. Rows with different protocols have no difference at all (`guard`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from bench.reporting.analysis.comparability import Guard
from bench.reporting.analysis.outcomes import Outcomes, ScoredArm
from bench.stats import bootstrap, intervals, variance_components
from bench.stats.intervals import ALPHA, LEVEL, Discordant, Interval, Spread
from bench.stats.variance_components import Design, Noise, Scope, Trained

EQUAL = 1e-9  # points; means of the same counts differ by less
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
SCOPE: dict[Scope, str] = {
    "methods": "speaks of the methods: other images and training again from the start",
    "fine-tunings": "speaks of these pretrained weights: other images and fine-tuning again",
    "weights": "speaks of these trained weights alone: other images",
}


class Retraining(NamedTuple):
    """Spread between trainings that differ only in their seed, pooled over arms."""

    sd: float
    freedom: int  # degrees of freedom of `sd`


class Score(NamedTuple):
    """An arm on its task, in percent. `interval` speaks of other images, `retrained` of training again as well."""

    arm: ScoredArm
    spread: Spread
    interval: Interval
    retrained: Interval | None = None  # None: trained once
    design: Design = Design(())
    first: float = nan  # probability of being the highest
    not_ranked_because: tuple[str, ...] = ()  # why it is not ranked with the reportable rows
    by_training: np.ndarray = np.empty(0)  # the score of every training


class Difference(NamedTuple):
    """`first` minus `second`, in points. Without a value where the guard forbids one."""

    first: str
    second: str
    value: float
    interval: Interval  # other images, and training again where both arms were trained several times
    images_interval: Interval  # paired bootstrap over images
    p: float
    p_adjusted: float
    by_retraining: float | None  # differences up to here are within the noise of retraining
    by_seed: dict[int, Discordant]  # exact McNemar of the models with the same seed; right or wrong only
    verdict: Verdict
    scope: Scope
    freedom: float  # degrees of freedom of `interval`; infinite for weights
    conflicts: tuple[str, ...] = ()  # 'resolution 224 vs 384'
    allowed: tuple[str, ...] = ()  # the same, let pass by --allow

    @property
    def told_apart(self) -> bool:
        """Whether the two arms differ by more than chance explains."""
        return self.verdict.startswith("different")


class Comparison(NamedTuple):
    """All that can be said about the arms of one task. `scores` follow the plan, without arms that have no score."""

    task: str
    metric: str
    images: int
    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]  # every pair once, both in the order of the plan
    noise: Retraining | None
    measure: str = ""  # '' for the headline metric

    @property
    def ranked(self) -> list[Score]:
        """Highest mean first; equal means in the order of the plan; without rows that stand apart."""
        return sorted(
            (score for score in self.scores if not score.not_ranked_because), key=lambda score: -score.spread.mean
        )

    @property
    def unranked(self) -> list[Score]:
        """Rows that stand apart."""
        return [score for score in self.scores if score.not_ranked_because]

    def between(self, first: str, second: str) -> Difference:
        """The difference of two arms in this order."""
        for found in self.differences:
            if (found.first, found.second) == (first, second):
                return found
            if (found.first, found.second) == (second, first):
                return _turned(found)
        raise KeyError((first, second))

    def highest(self) -> list[str]:
        """Ids of the arms with the highest mean: several when they are equal."""
        return [s.arm.planned.id for s in self.ranked if s.spread.mean >= self.ranked[0].spread.mean - EQUAL]

    def like_best(self) -> list[str]:
        """Ids of the best arm and of those that cannot be told apart from it."""
        if not self.ranked:
            return []
        best, *others = [score.arm.planned.id for score in self.ranked]
        found = {other: self.between(best, other) for other in others}
        return [best, *(other for other, d in found.items() if not d.told_apart and not d.conflicts)]


class _Known(NamedTuple):
    """What the differences of a task are made from."""

    trained: dict[str, Trained]
    noise: dict[Scope, Noise | None]
    guard: Guard | None


def compare_arms(
    task: str, arms: Sequence[ScoredArm], draws: int = bootstrap.DRAWS, *, outcomes: Outcomes | None = None,
    guard: Guard | None = None, measure: str = "",
) -> Comparison:  # fmt: skip
    """Scores and differences of the arms of one task that have at least one finished seed.

    outcomes: says which seeds share a pretraining; without it none do. measure: other than the headline metric.
    """
    scored = [arm for arm in arms if arm.seeds]
    metric = measure or arms[0].planned.metric
    counts = {arm.planned.id: arm.counts() for arm in scored}
    drawn = bootstrap.bootstrap(counts, draws)
    trained = {
        arm.planned.id: variance_components.trained(
            _design(arm, outcomes), bootstrap.scores(counts[arm.planned.id]), drawn[arm.planned.id]
        )
        for arm in scored
    }
    known = _Known(trained, _noise(list(trained.values())), guard)
    images = len(scored[0].seeds[0].ids) if scored else 0
    right = all(arm.is_right_or_wrong for arm in scored)
    scores = _with_first([_score(arm, known, scored, images if right else 0) for arm in scored], known)
    shared = known.noise["methods"] or known.noise["fine-tunings"]
    retraining = Retraining(shared.seen**0.5, shared.freedom) if shared else None
    return Comparison(task, metric, images, scores, _differences(scores, known), retraining, measure)


def _design(arm: ScoredArm, outcomes: Outcomes | None) -> Design:
    starts = [
        outcomes.start(arm.planned, one.seed) if outcomes else f"{arm.planned.id} {one.seed}" for one in arm.seeds
    ]
    return Design(tuple(starts))


def _noise(arms: Sequence[Trained]) -> dict[Scope, Noise | None]:
    """The noise that arms with the same kind of units share."""
    scopes: tuple[Scope, ...] = ("methods", "fine-tunings")
    found: dict[Scope, Noise | None] = {"weights": None}
    return found | {scope: variance_components.pooled([a for a in arms if a.design.scope == scope]) for scope in scopes}


def _score(arm: ScoredArm, known: _Known, others: Sequence[ScoredArm], images: int) -> Score:
    """images: of right or wrong answers, for Wilson's interval; 0 for ratios of areas."""
    trained = known.trained[arm.planned.id]
    sd = float(trained.scores.std(ddof=1)) if trained.freedom else None
    spread = Spread(trained.mean, sd, trained.design.trainings)
    interval = intervals.wilson(spread.mean, images) if images else intervals.percentiles(trained.drawn.mean(0))
    estimate = variance_components.of_score(trained, known.noise[trained.design.scope])
    not_ranked_because = known.guard.not_ranked_because(arm, others) if known.guard else ()
    retrained = intervals.student(*estimate)[0] if estimate else None
    by_training = bootstrap.scores(arm.counts())
    return Score(
        arm, spread, interval, retrained, trained.design, not_ranked_because=not_ranked_because, by_training=by_training
    )


def _with_first(scores: Sequence[Score], known: _Known) -> tuple[Score, ...]:
    """The scores with the probability of being highest, over other images and, where known, training again."""
    ranked = [score for score in scores if not score.not_ranked_because]
    if not ranked:
        return tuple(scores)
    shares = first_shares([known.trained[score.arm.planned.id] for score in ranked], known.noise)
    found = dict(zip((score.arm.planned.id for score in ranked), shares, strict=True))
    return tuple(score._replace(first=found.get(score.arm.planned.id, nan)) for score in scores)


def first_shares(arms: Sequence[Trained], noise: Mapping[Scope, Noise | None]) -> list[float]:
    """Share of draws in which each arm is highest; arms that are equal in a draw divide it.

    A draw is of images, and of the luck of training again by Student's t where the noise of training is known.
    """
    generator = np.random.default_rng(1)
    drawn = np.stack([arm.drawn.mean(0) + _luck(arm, noise, generator) for arm in arms])  # (arms, D)
    highest = drawn >= drawn.max(0) - EQUAL
    return (highest / highest.sum(0)).mean(1).tolist()


def _luck(arm: Trained, noise: Mapping[Scope, Noise | None], generator: np.random.Generator) -> np.ndarray:
    found = noise[arm.design.scope] or variance_components.noise(arm)
    if not found.freedom:
        return np.zeros(arm.drawn.shape[1])
    deviation = (found.net / len(arm.scores)) ** 0.5
    return deviation * generator.standard_t(found.freedom, arm.drawn.shape[1])


def _differences(scores: Sequence[Score], known: _Known) -> tuple[Difference, ...]:
    """Every pair, first without regard to the others, then by Holm's correction."""
    found = [_difference(a, b, known) for i, a in enumerate(scores) for b in scores[i + 1 :]]
    adjusted = intervals.holm([one.p for one, _ in found])
    by_images = intervals.holm([p for _, p in found])
    return tuple(
        one._replace(p_adjusted=p, verdict=_verdict(one, p, images))
        for (one, _), p, images in zip(found, adjusted, by_images, strict=True)
    )


def _difference(first: Score, second: Score, known: _Known) -> tuple[Difference, float]:
    """One pair before Holm's correction, and its p over images alone."""
    names = first.arm.planned.id, second.arm.planned.id
    one, other = (known.trained[name] for name in names)
    conflicts, allowed = known.guard.split(*names) if known.guard else ((), ())
    scope = variance_components.scope_of(one.design, other.design)
    if conflicts:
        nothing = Interval(nan, nan)
        return Difference(*names, nan, nothing, nothing, nan, nan, None, {}, "not comparable", scope, nan,
                          conflicts, allowed), nan  # fmt: skip
    drawn, by_seed = one.drawn.mean(0) - other.drawn.mean(0), _mcnemar_by_seed(first.arm, second.arm)
    interval = images_interval = intervals.percentiles(drawn)
    p = by_images = _images_p(drawn, by_seed, first, second)
    estimate = variance_components.of_difference(one, other, known.noise[scope])
    if estimate:
        interval, p = intervals.student(*estimate)
    noise = _noise_of(known.noise[scope], one, other)
    found = Difference(
        *names, one.mean - other.mean, interval, images_interval, p, nan, noise, by_seed, "images", scope,
        estimate.freedom if estimate else np.inf, conflicts, allowed,
    )  # fmt: skip
    return found, by_images


def _images_p(drawn: np.ndarray, by_seed: Mapping[int, Discordant], first: Score, second: Score) -> float:
    """Exact for two models that are right or wrong; by the bootstrap for means over seeds and for areas."""
    if first.spread.n == second.spread.n == 1 and by_seed:
        return next(iter(by_seed.values())).p
    return intervals.two_sided(drawn)


def _noise_of(shared: Noise | None, first: Trained, second: Trained) -> float | None:
    """Difference of two means that training alone exceeds in 5 % of studies ("least significant difference")."""
    if shared is None or not first.freedom or not second.freedom:
        return None
    t = float(stats.t.ppf(0.5 + LEVEL / 2, shared.freedom))
    return t * float(np.sqrt(shared.seen * (1 / len(first.scores) + 1 / len(second.scores))))


def _verdict(found: Difference, p_adjusted: float, by_images: float) -> Verdict:
    if found.conflicts:
        return "not comparable"
    if p_adjusted <= ALPHA:
        return VERDICT_OF_SCOPE[found.scope]
    return "images" if by_images > ALPHA else "retraining"


def _mcnemar_by_seed(first: ScoredArm, second: ScoredArm) -> dict[int, Discordant]:
    """Of the models with the same seed; where no seed is the same, of the first ones."""
    if not (first.is_right_or_wrong and second.is_right_or_wrong):
        return {}
    others = {outcome.seed: outcome for outcome in second.seeds}
    pairs = [(one, others[one.seed]) for one in first.seeds if one.seed in others]
    return {
        one.seed: intervals.mcnemar(one.hits[:, 0] > 0, other.hits[:, 0] > 0)
        for one, other in pairs or [(first.seeds[0], second.seeds[0])]
    }


def _turned(found: Difference) -> Difference:
    by_seed = {seed: Discordant(d.second_only, d.first_only, d.p) for seed, d in found.by_seed.items()}
    return found._replace(
        first=found.second, second=found.first, value=-found.value, interval=_negative(found.interval),
        images_interval=_negative(found.images_interval), by_seed=by_seed,
    )  # fmt: skip


def _negative(interval: Interval) -> Interval:
    return Interval(-interval.high, -interval.low)
