"""Disagreement of two arms by image and by class, and calibration of each.

Letters: N images, S seeds, B bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import bdtr

from bench.reporting.analysis.comparisons import Comparison
from bench.reporting.analysis.outcomes import Outcomes, ScoredArm, label_of
from bench.stats import bootstrap, intervals

BINS = 15  # of confidence, equally wide; Guo et al., arXiv 1706.04599, section 5
MOST_IMAGES = 8  # of either kind


class Flips(NamedTuple):
    """Ids of images that only one of two arms, named by label, gets right: those of most seeds first."""

    task: str
    first: str
    second: str
    won: tuple[str, ...]
    lost: tuple[str, ...]


def expected_calibration_error(confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> float:
    """Expected calibration error in points: how far confidence is from accuracy, over bins weighted by images.

    confidence: highest probability of every image (N,), in [0, 1]. Source: Guo et al., arXiv 1706.04599, equation 3.
    """
    # bins are ((b - 1) / B, b / B]; clipped, because confidence 0 would fall before the first
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, confidence - right, BINS)  # (B,) images times (confidence - accuracy)
    return 100 * float(np.abs(gaps).sum() / len(confidence))


def calibration(outcomes: Outcomes) -> pd.DataFrame:
    """Expected calibration error of every arm whose evaluations stored their confidence.

    columns: task, arm, label, ece, ece_sd, confidence, seeds. ece and confidence are means over seeds in percent,
    ece_sd the standard deviation over seeds.
    """
    rows = []
    for arm in outcomes.arms.values():
        seeds = [(result.confidence, result.hits[:, 0] > 0) for result in arm.seeds if result.confidence is not None]
        if seeds:
            ece = intervals.spread([expected_calibration_error(confidence, right) for confidence, right in seeds])
            mean = 100 * float(np.mean([confidence.mean() for confidence, _ in seeds]))
            sd = float("nan") if ece.sd is None else ece.sd
            rows.append((arm.planned.task, arm.planned.id, label_of(arm.planned), ece.mean, sd, mean, len(seeds)))
    return pd.DataFrame(rows, columns=["task", "arm", "label", "ece", "ece_sd", "confidence", "seeds"])


def _right(arm: ScoredArm) -> NDArray[np.float64]:
    """Share of an arm's seeds that get each image right (N,)."""
    return arm.counts().hits[:, :, 0].mean(0)


def _comparable_pairs(comparison: Comparison) -> Iterator[tuple[ScoredArm, ScoredArm]]:
    """Pairs of arms without conflicts."""
    arms = {score.arm.planned.id: score.arm for score in comparison.scores}
    for difference in comparison.differences:
        if not difference.conflicts:
            yield arms[difference.first], arms[difference.second]


def agreement(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Percent of images that both, one or none of two arms gets right; mean over all pairs of their seeds."""
    rows = []
    for comparison in comparisons:
        for first, second in _comparable_pairs(comparison):
            if first.is_right_or_wrong and second.is_right_or_wrong:
                a, b = _right(first), _right(second)
                # per image, a product of shares is the mean over all pairs of seeds
                shares = [a * b, a * (1 - b), (1 - a) * b, (1 - a) * (1 - b)]
                rows.append((*_names(comparison, first, second), *(100 * float(share.mean()) for share in shares)))
    columns = ["task", "first", "second", "first_label", "second_label"]
    return pd.DataFrame(rows, columns=[*columns, "both", "first_only", "second_only", "neither"])


def _names(comparison: Comparison, first: ScoredArm, second: ScoredArm) -> tuple[str, ...]:
    return (comparison.task, first.planned.id, second.planned.id, label_of(first.planned), label_of(second.planned))


def disagreements(first: ScoredArm, second: ScoredArm) -> tuple[list[str], list[str]]:
    """Ids of images that only the first, and only the second arm gets right; those of most seeds first."""
    lead = _right(first) - _right(second)
    ids = np.array(first.seeds[0].ids)
    order = np.argsort(-np.abs(lead), kind="stable")
    return ids[order[lead[order] > 0]].tolist(), ids[order[lead[order] < 0]].tolist()


def flips(comparisons: Sequence[Comparison], most: int = MOST_IMAGES) -> list[Flips]:
    """The images on which the best arm of every task and each other one disagree; `most` of either kind."""
    pairs = []
    for comparison in comparisons:
        for best, other in _against_best(comparison):
            if best.is_right_or_wrong:
                won, lost = (tuple(ids[:most]) for ids in disagreements(best, other))
                pairs.append(Flips(comparison.task, label_of(best.planned), label_of(other.planned), won, lost))
    return pairs


def _against_best(comparison: Comparison) -> Iterator[tuple[ScoredArm, ScoredArm]]:
    """The best arm with each other one that does not conflict with it."""
    arms = [score.arm for score in comparison.ranked]
    for other in arms[1:]:
        if not comparison.between(arms[0].planned.id, other.planned.id).conflicts:
            yield arms[0], other


def classes(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """The best arm against every other one, class by class, largest loss first.

    Holm's correction is over the classes of a pair.

    columns: task, first, second, first_label, second_label, class_index, class_name, images, first_score,
    second_score, difference, p, p_adjusted. Accuracy: sign test on the images of the class. Areas: IoU, without p.
    """
    frames = [_class_scores(comparison, *pair) for comparison in comparisons for pair in _against_best(comparison)]
    columns = ["task", "first", "second", "first_label", "second_label", "class_index", "class_name", "images",
               "first_score", "second_score", "difference", "p", "p_adjusted"]  # fmt: skip
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def _class_scores(comparison: Comparison, first: ScoredArm, second: ScoredArm) -> pd.DataFrame:
    by_area = not first.is_right_or_wrong
    if not by_area and first.seeds[0].labels is None:
        return pd.DataFrame()
    frame = _class_ious(first, second) if by_area else _class_accuracies(first, second)
    arms = dict(zip(("task", "first", "second", "first_label", "second_label"),
                    _names(comparison, first, second), strict=True))  # fmt: skip
    names = first.seeds[0].classes
    class_names = [names[k] if k < len(names) else str(k) for k in frame["class_index"]]
    frame = frame.assign(**arms, class_name=class_names, difference=frame["first_score"] - frame["second_score"])
    return frame.sort_values(["difference", "class_index"], kind="stable")


def _class_accuracies(first: ScoredArm, second: ScoredArm) -> pd.DataFrame:
    """Accuracy of both arms on the images of each class, and the sign test of the images on which they differ."""
    labels, class_of = np.unique(np.asarray(first.seeds[0].labels), return_inverse=True)
    a, b = _right(first), _right(second)
    images = np.bincount(class_of)
    # an image counts for the arm with more seeds right on it: seeds are no further images
    wins, losses = (np.bincount(class_of, ahead, len(labels)) for ahead in (a > b, a < b))
    p = np.minimum(1.0, 2 * bdtr(np.minimum(wins, losses), (wins + losses).astype(int), 0.5))
    return pd.DataFrame(
        {"class_index": labels, "images": images, "first_score": 100 * np.bincount(class_of, a) / images,
         "second_score": 100 * np.bincount(class_of, b) / images, "p": p, "p_adjusted": intervals.holm(p.tolist())}
    )  # fmt: skip


def _class_ious(first: ScoredArm, second: ScoredArm) -> pd.DataFrame:
    """IoU of both arms in every class that occurs, mean over seeds."""
    scores = []
    for arm in (first, second):
        counts = arm.counts()
        hits, totals = counts.hits.sum(1), counts.totals.sum(1)  # (S, C)
        scores.append(bootstrap.mean_ratio(hits[:, :, None], totals[:, :, None]).mean(0))
    totals = first.counts().totals[0]
    occurs = np.flatnonzero(totals.sum(0) > 0)
    nothing = np.full(len(occurs), np.nan)
    return pd.DataFrame(
        {"class_index": occurs, "images": (totals > 0).sum(0)[occurs], "first_score": scores[0][occurs],
         "second_score": scores[1][occurs], "p": nothing, "p_adjusted": nothing}
    )  # fmt: skip
