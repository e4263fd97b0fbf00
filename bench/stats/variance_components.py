"""What training again would change, and other images as well: components of variance.

A score varies with the pretraining (its seed), with the fine-tuning on top of it, and with the images it was measured
on. Independent are only pretrainings: five fine-tunings of one pretraining say how fine-tunings vary and nothing about
pretraining again. So the unit of an arm is a pretraining, as the mean of its fine-tunings; where all start from one,
the unit is a fine-tuning and every statement is about that pretraining alone. All units are scored on the same images;
what images do to the spread between units is known from the bootstrap and is counted once.

Letters: U units of an arm, S trainings, D bootstrap draws. Source of the model: readers within treatments, cases
crossed with both, as in Obuchowski and Rockette 1995, Commun. Stat. Simul. 24, 285; degrees of freedom by
Satterthwaite 1946, Biometrics Bull. 2, 110.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bench.stats.intervals import ALPHA, LEVEL, Interval

Scope = Literal["methods", "fine-tunings", "weights"]
SCOPES: tuple[Scope, ...] = ("weights", "fine-tunings", "methods")  # from the narrowest statement to the widest
UNEQUAL = ALPHA  # of Bartlett's test: from here on arms do not share one noise


class Design(NamedTuple):
    """How an arm was trained: for every training, in order, the pretraining that it starts from."""

    start_of: tuple[str, ...]

    @property
    def trainings(self) -> int:
        """Models that were scored."""
        return len(self.start_of)

    @property
    def pretrainings(self) -> int:
        """Independent ones."""
        return len(set(self.start_of))

    @property
    def scope(self) -> Scope:
        """What a difference of this arm to another can be about at most."""
        return "methods" if self.pretrainings > 1 else "fine-tunings" if self.trainings > 1 else "weights"

    @property
    def sentence(self) -> str:
        """'1 pretraining, fine-tuned 5 times: n is 1, not 5'."""
        if self.trainings == self.pretrainings:
            return "trained once" if self.trainings == 1 else f"trained {self.trainings} times"
        return f"{_times(self.pretrainings, 'pretraining')}, {_times(self.trainings, 'fine-tuning')}: " + (
            f"n is {self.pretrainings}, not {self.trainings}"
        )

    def shares(self) -> NDArray[np.float64]:
        """Weight of every training in the arm's score (S,): every pretraining counts once."""
        often = [self.start_of.count(start) for start in self.start_of]
        return 1 / (self.pretrainings * np.array(often, float))

    def units(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Scores (S, ...) as scores of independent units (U, ...)."""
        if self.pretrainings < 2:
            return np.asarray(scores, float)
        starts = np.array(self.start_of)
        return np.stack([np.asarray(scores)[starts == start].mean(0) for start in dict.fromkeys(self.start_of)])


class Trained(NamedTuple):
    """An arm as its units: their scores (U,), and on drawn images (U, D)."""

    design: Design
    scores: NDArray[np.float64]
    drawn: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """The arm's score."""
        return float(self.scores.mean())

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the spread between units."""
        return len(self.scores) - 1


class Noise(NamedTuple):
    """Variance between units: as it is seen, and the part that the images of each unit explain."""

    seen: float
    by_images: float
    freedom: int

    @property
    def net(self) -> float:
        """Variance that training again adds to that of the images."""
        return max(0.0, self.seen - self.by_images)


class Estimate(NamedTuple):
    """A mean or a difference with its standard deviation, known with so many degrees of freedom."""

    value: float
    deviation: float
    freedom: float


def trained(design: Design, scores: NDArray[np.floating], drawn: NDArray[np.floating]) -> Trained:
    """The units of an arm from the scores of its trainings (S,) and the same on drawn images (S, D)."""
    return Trained(design, design.units(scores), design.units(drawn))


def noise(arm: Trained) -> Noise:
    """Variance between the units of one arm; not known (no degrees of freedom) for a single one."""
    if not arm.freedom:
        return Noise(0.0, 0.0, 0)
    apart = arm.drawn - arm.drawn.mean(0)
    return Noise(float(arm.scores.var(ddof=1)), float(apart.var(1).sum() / arm.freedom), arm.freedom)


def pooled(arms: Sequence[Trained]) -> Noise | None:
    """One noise for all arms, weighted by degrees of freedom; None where they clearly differ (Bartlett, 5 %)."""
    several = [arm for arm in arms if arm.freedom]
    if not several:
        return None
    return None if _unequal([arm.scores for arm in several]) else _together([noise(arm) for arm in several])


def _unequal(scores: Sequence[NDArray[np.float64]]) -> bool:
    """Whether arms clearly differ in how much their units vary."""
    if len(scores) < 2 or any(own.var() == 0 for own in scores):
        return False
    return bool(stats.bartlett(*scores).pvalue < UNEQUAL)


def _together(found: Sequence[Noise]) -> Noise:
    freedom = sum(one.freedom for one in found)
    weigh = [(one.freedom / freedom, one) for one in found]
    return Noise(sum(w * one.seen for w, one in weigh), sum(w * one.by_images for w, one in weigh), freedom)


def of_score(arm: Trained, shared: Noise | None) -> Estimate | None:
    """An arm's score over other images and other trainings; None when it was trained once."""
    if not arm.freedom:
        return None
    return _estimate(arm.mean, arm.drawn.mean(0), [(shared or noise(arm), 1 / len(arm.scores))])


def of_difference(first: Trained, second: Trained, shared: Noise | None) -> Estimate | None:
    """`first` minus `second` over other images and other trainings; None where one of them was trained once.

    Arms that share their pretrainings, one by one, are compared within each: its luck is in both.
    """
    if not first.freedom or not second.freedom:
        return None
    value, drawn = first.mean - second.mean, first.drawn.mean(0) - second.drawn.mean(0)
    if is_paired(first.design, second.design):
        within = first._replace(scores=first.scores - second.scores, drawn=first.drawn - second.drawn)
        return _estimate(value, drawn, [(noise(within), 1 / len(within.scores))])
    if shared is not None:
        return _estimate(value, drawn, [(shared, 1 / len(first.scores) + 1 / len(second.scores))])
    return _estimate(value, drawn, [(noise(arm), 1 / len(arm.scores)) for arm in (first, second)])


def is_paired(first: Design, second: Design) -> bool:
    """Whether two arms start from the same pretrainings, of which there are several."""
    return first.pretrainings > 1 and tuple(dict.fromkeys(first.start_of)) == tuple(dict.fromkeys(second.start_of))


def _estimate(value: float, drawn: NDArray[np.float64], parts: Sequence[tuple[Noise, float]]) -> Estimate:
    """Images and training again together: the variance of the bootstrap, and the parts of the noise that it lacks.

    Degrees of freedom count the noise as it was seen, for its net part alone would seem to be known too well; like
    Satterthwaite's own they are never fewer than those of the part that is known worst.
    """
    by_images = float(drawn.var())
    total = by_images + sum(share * one.net for one, share in parts)
    uncertain = sum((share * one.seen) ** 2 / one.freedom for one, share in parts if one.freedom)
    fewest = min((one.freedom for one, _ in parts if one.freedom), default=1)
    freedom = max(total**2 / uncertain, fewest) if uncertain > 0 else np.inf
    return Estimate(value, float(np.sqrt(total)), freedom)


def scope_of(first: Design, second: Design) -> Scope:
    """What a difference of two arms can be about: the narrower of the two."""
    return min((first.scope, second.scope), key=SCOPES.index)


def deviation(interval: Interval, freedom: float) -> float:
    """The standard deviation that a 95 % interval was made from."""
    return (interval.high - interval.low) / (2 * float(stats.t.ppf(0.5 + LEVEL / 2, freedom)))


class Budget(NamedTuple):
    """Where the spread of an arm's scores comes from: standard deviations in points; None where it is not known."""

    pretraining: float | None
    finetuning: float | None


def budget(design: Design, scores: NDArray[np.floating]) -> Budget:
    """Noise of pretraining and of fine-tuning apart, by the mean squares of a nested design.

    Without two fine-tunings of one pretraining the two cannot be told apart: all of it counts as pretraining.
    """
    groups = [np.asarray(scores)[np.array(design.start_of) == start] for start in dict.fromkeys(design.start_of)]
    freedom = design.trainings - design.pretrainings
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / freedom if freedom else None
    between = float(np.var([group.mean() for group in groups], ddof=1)) if len(groups) > 1 else None
    if between is not None and within is not None:
        between = max(0.0, between - within * float(np.mean([1 / len(group) for group in groups])))
    return Budget(*(None if part is None else float(np.sqrt(part)) for part in (between, within)))


def _times(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
