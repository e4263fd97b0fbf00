"""Variance components: what other images, another pretraining and another fine-tuning contribute to a score.

A score varies with the pretraining (its seed), with the fine-tuning on top of it, and with the images it was measured
on. Only pretrainings are independent: five fine-tunings of one pretraining show the variance between fine-tunings and
nothing about another pretraining. So the unit of an arm is a pretraining, as the mean of its fine-tunings; where all
start from one, the unit is a fine-tuning and every statement is about that pretraining alone. All units are scored on
the same images; what images contribute to the variance between units is known from the bootstrap and counted once.

Letters: U units of an arm, S trainings, B bootstrap replicates. Source of the model: readers within treatments, cases
crossed with both, as in Obuchowski and Rockette 1995, Commun. Stat. Simul. 24, 285; degrees of freedom by
Satterthwaite 1946, Biometrics Bull. 2, 110.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bench.stats.intervals import ALPHA, LEVEL, Interval

Scope = Literal["methods", "fine-tunings", "weights"]
SCOPES: tuple[Scope, ...] = ("weights", "fine-tunings", "methods")  # from the narrowest statement to the widest


@dataclass(frozen=True, slots=True)
class Design:
    """The nesting of an arm's trainings: for every training, in order, the pretraining that it starts from."""

    pretraining_of: tuple[str, ...]

    @property
    def trainings(self) -> int:
        """Number of models that were scored."""
        return len(self.pretraining_of)

    @property
    def pretrainings(self) -> int:
        """Number of independent ones."""
        return len(set(self.pretraining_of))

    @property
    def scope(self) -> Scope:
        """The widest statement that a difference of this arm to another supports."""
        return "methods" if self.pretrainings > 1 else "fine-tunings" if self.trainings > 1 else "weights"

    @property
    def sentence(self) -> str:
        """'1 pretraining, 5 fine-tunings: n is 1, not 5'."""
        if self.trainings == self.pretrainings:
            return "trained once" if self.trainings == 1 else f"trained {self.trainings} times"
        return f"{_counted(self.pretrainings, 'pretraining')}, {_counted(self.trainings, 'fine-tuning')}: " + (
            f"n is {self.pretrainings}, not {self.trainings}"
        )

    def weights(self) -> NDArray[np.float64]:
        """Weight of every training in the arm's score (S,): every pretraining counts once."""
        trainings = [self.pretraining_of.count(pretraining) for pretraining in self.pretraining_of]
        return 1 / (self.pretrainings * np.array(trainings, float))

    def unit_scores(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Scores of the trainings (S, ...) averaged within independent units (U, ...)."""
        if self.pretrainings < 2:
            return np.asarray(scores, float)
        of = np.array(self.pretraining_of)
        # dict.fromkeys: in the order of the plan, by which is_paired compares two arms
        return np.stack([np.asarray(scores)[of == name].mean(0) for name in dict.fromkeys(self.pretraining_of)])


class ArmUnits(NamedTuple):
    """The independent units of an arm: their scores (U,) and the bootstrap replicates of these (U, B)."""

    design: Design
    scores: NDArray[np.float64]
    replicates: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """The arm's score."""
        return float(self.scores.mean())

    @property
    def df(self) -> int:
        """Degrees of freedom of the variance between units."""
        return len(self.scores) - 1


class SeedVariance(NamedTuple):
    """Variance between units (seeds): as observed, and the part of it that is due to the images."""

    observed: float
    from_images: float
    df: int  # degrees of freedom

    @property
    def net(self) -> float:
        """The between-seed variance component: what training again adds to the variance over images."""
        return max(0.0, self.observed - self.from_images)


class Estimate(NamedTuple):
    """A mean or a difference with its standard error and the degrees of freedom of that."""

    value: float
    standard_error: float
    df: float


def arm_units(design: Design, scores: NDArray[np.floating], replicates: NDArray[np.floating]) -> ArmUnits:
    """The units of an arm from the scores of its trainings (S,) and their bootstrap replicates (S, B)."""
    return ArmUnits(design, design.unit_scores(scores), design.unit_scores(replicates))


def seed_variance(arm: ArmUnits) -> SeedVariance:
    """Variance between the units of one arm; without degrees of freedom (unknown) for a single unit."""
    if not arm.df:
        return SeedVariance(0.0, 0.0, 0)
    # what the images move in all units alike does not spread them: only each unit's own part does
    own = arm.replicates - arm.replicates.mean(0)
    return SeedVariance(float(arm.scores.var(ddof=1)), float(own.var(1).sum() / arm.df), arm.df)


def pooled_variance(arms: Sequence[ArmUnits]) -> SeedVariance | None:
    """Between-seed variance pooled over arms by degrees of freedom; None where they clearly differ (Bartlett, 5 %)."""
    repeated = [arm for arm in arms if arm.df]
    if not repeated or _variances_differ([arm.scores for arm in repeated]):
        return None
    return _pool([seed_variance(arm) for arm in repeated])


def _variances_differ(scores: Sequence[NDArray[np.float64]]) -> bool:
    """Whether Bartlett's test rejects equal variances between the units of all arms."""
    # Bartlett takes logarithms: an arm whose units score alike, variance 0, has none
    if len(scores) < 2 or any(own.var() == 0 for own in scores):
        return False
    return bool(stats.bartlett(*scores).pvalue < ALPHA)


def _pool(variances: Sequence[SeedVariance]) -> SeedVariance:
    df = sum(variance.df for variance in variances)
    shares = [(variance.df / df, variance) for variance in variances]
    observed = sum(share * variance.observed for share, variance in shares)
    return SeedVariance(observed, sum(share * variance.from_images for share, variance in shares), df)


def estimate_score(arm: ArmUnits, shared: SeedVariance | None) -> Estimate | None:
    """An arm's score with its standard error over other images and seeds; None when it was trained once."""
    if not arm.df:
        return None
    return _estimate(arm.mean, arm.replicates.mean(0), [(shared or seed_variance(arm), 1 / len(arm.scores))])


def estimate_difference(first: ArmUnits, second: ArmUnits, shared: SeedVariance | None) -> Estimate | None:
    """`first` minus `second` with its standard error over other images and seeds; None where one was trained once.

    Arms that share their pretrainings, one by one, are compared within each (paired): its effect cancels.
    """
    if not first.df or not second.df:
        return None
    value, replicates = first.mean - second.mean, first.replicates.mean(0) - second.replicates.mean(0)
    if is_paired(first.design, second.design):
        within = ArmUnits(first.design, first.scores - second.scores, first.replicates - second.replicates)
        return _estimate(value, replicates, [(seed_variance(within), 1 / len(within.scores))])
    if shared is not None:
        return _estimate(value, replicates, [(shared, 1 / len(first.scores) + 1 / len(second.scores))])
    return _estimate(value, replicates, [(seed_variance(arm), 1 / len(arm.scores)) for arm in (first, second)])


def is_paired(first: Design, second: Design) -> bool:
    """Whether two arms start from the same pretrainings, of which there are several."""
    names = [tuple(dict.fromkeys(design.pretraining_of)) for design in (first, second)]
    return first.pretrainings > 1 and names[0] == names[1]


def _estimate(value: float, replicates: NDArray[np.float64], parts: Sequence[tuple[SeedVariance, float]]) -> Estimate:
    """Standard error over images and seeds: the variance of the bootstrap plus the net between-seed variances.

    parts: between-seed variances, each with its factor in the variance of `value`.
    """
    by_images = float(replicates.var())
    total = by_images + sum(factor * variance.net for variance, factor in parts)
    # Satterthwaite. The observed variance counts, not the net one alone, which would seem to be known too well.
    uncertain = sum((factor * variance.observed) ** 2 / variance.df for variance, factor in parts if variance.df)
    fewest = min((variance.df for variance, _ in parts if variance.df), default=1)
    # never fewer than those of the component that is known worst: so it is for Satterthwaite's own formula
    df = max(total**2 / uncertain, fewest) if uncertain > 0 else np.inf
    return Estimate(value, float(np.sqrt(total)), df)


def scope_of(first: Design, second: Design) -> Scope:
    """The widest statement that a difference of two arms supports: the narrower of the two."""
    return min((first.scope, second.scope), key=SCOPES.index)


def standard_error(interval: Interval, df: float) -> float:
    """The standard error from which a 95 % t interval was made."""
    return (interval.high - interval.low) / (2 * float(stats.t.ppf(0.5 + LEVEL / 2, df)))


class ComponentSds(NamedTuple):
    """Standard deviations in points that pretraining and fine-tuning contribute to a score; None: not known."""

    pretraining: float | None
    finetuning: float | None


def component_sds(design: Design, scores: NDArray[np.floating]) -> ComponentSds:
    """Variance components of pretraining and fine-tuning, by the mean squares of a nested design (ANOVA).

    Without two fine-tunings of one pretraining the two cannot be separated: all of it counts as pretraining.
    """
    of = np.array(design.pretraining_of)
    groups = [np.asarray(scores)[of == name] for name in dict.fromkeys(design.pretraining_of)]
    df = design.trainings - design.pretrainings
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / df if df else None
    between = float(np.var([group.mean() for group in groups], ddof=1)) if len(groups) > 1 else None
    if between is not None and within is not None:
        # means of few fine-tunings vary by these as well; an estimate below zero is zero
        between = max(0.0, between - within * float(np.mean([1 / len(group) for group in groups])))
    return ComponentSds(*(None if part is None else float(np.sqrt(part)) for part in (between, within)))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
