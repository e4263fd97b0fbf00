"""What a study can find before it is run: the smallest difference that so many seeds and images tell apart.

Known spreads of whole trainings are here too, because they say what a published number would have been with another
seed.
"""

from __future__ import annotations

from math import inf, sqrt
from typing import NamedTuple

from bench.config.stage import Plan

ALPHA, POWER = 0.05, 0.8
DISCORDANT = 0.08  # images that one of two models of like accuracy gets right and the other wrong; an assumption


class PublishedNoise(NamedTuple):
    """Standard deviation of a score, in points, over trainings that differ in their seed, and who saw it."""

    sd: float
    trainings: int
    source: str


ISSUE = "github.com/facebookresearch/mae, issue 91"
NOISE: dict[tuple[str, str, str], PublishedNoise] = {  # task, metric, size; pretraining and fine-tuning repeated
    ("imagenet1k", "top1", "base"): PublishedNoise(0.065, 5, ISSUE),
    ("imagenet1k", "top1", "large"): PublishedNoise(0.058, 5, ISSUE),
    ("imagenet1k", "top1", "huge"): PublishedNoise(0.055, 4, ISSUE),
}


def known_noise(task: str, metric: str, size: str) -> PublishedNoise | None:
    """The published spread of trainings of this size on this task, or of the nearest size that has one."""
    found = {key: noise for key, noise in NOISE.items() if key[:2] == (task, metric)}
    return found.get((task, metric, size)) or (max(found.values()) if found else None)


def smallest_difference(images_variance: float, seeds_variance: float = 0.0, freedom: float = inf) -> float:
    """Difference in points that 80 of 100 studies tell apart from none at 5 %, two-sided.

    images_variance, seeds_variance: of the difference of two means, in points squared. Both are known with `freedom`
    degrees of freedom: what images do to a score is mostly each model's own luck, which only the seeds show. Source:
    Cohen 1988, chapter 2, with quantiles of Student's t in place of the normal ones.
    """
    from scipy.special import ndtri, stdtrit  # the lists of the command line do without scipy

    quantiles = [float(ndtri(q) if freedom == inf else stdtrit(freedom, q)) for q in (1 - ALPHA / 2, POWER)]
    return sum(quantiles) * sqrt(images_variance + seeds_variance)


def accuracy_variance(images: int, discordant: float = DISCORDANT) -> float:
    """Variance in points squared, over images, of a paired difference of two accuracies that are nearly equal."""
    return 100.0**2 * discordant / images


def detectable(seeds: int, images: int, noise: PublishedNoise | None) -> float:
    """`smallest_difference` of two accuracies, both over `seeds` trainings; of the weights alone for one seed."""
    by_images = accuracy_variance(images)
    if noise is None or seeds < 2:
        return smallest_difference(by_images)
    return smallest_difference(by_images, 2 * noise.sd**2 / seeds, 2 * (seeds - 1))


def sentences(plan: Plan) -> list[str]:
    """For every task, the smallest difference that its arms can be told apart by. Accuracies only."""
    found: dict[str, str] = {}
    for arm in plan.arms:
        scored = plan.stages[next(iter(arm.stages.values()))["evaluate"]].data.get("val")
        if arm.metric == "top1" and scored is not None and scored.images and arm.task not in found:
            seeds = min(len(other.stages) for other in plan.arms if other.task == arm.task)
            found[arm.task] = _sentence(arm.task, seeds, scored.images, known_noise(arm.task, arm.metric, arm.size))
    return list(found.values())


def _sentence(task: str, seeds: int, images: int, noise: PublishedNoise | None) -> str:
    points = detectable(seeds, images, noise)
    many = f"{seeds} seed" + ("s" if seeds > 1 else "")
    told = f"{task}: {many} and {images:,} images tell {points:.2f} points apart in 80 of 100 studies"
    assumed = f"if {100 * DISCORDANT:.0f} % of the images are answered differently"
    if seeds < 2:
        return f"{told}, {assumed}; with one seed that is said of the trained weights, not of the methods"
    if noise is None:
        return f"{told} at best, {assumed}: how much training again moves a score here is not known"
    return f"{told}, {assumed} and training again moves a score by {noise.sd:g} points (sd; {noise.source})"
