"""Power analysis of a study before it is run: the minimal detectable difference for its seeds and images.

Published standard deviations between seeds are here too: they say how far a published number may be off by its seed.
"""

from __future__ import annotations

from math import inf, sqrt
from typing import NamedTuple

from bench.config.stage import Plan

ALPHA, POWER = 0.05, 0.8
DISCORDANT = 0.08  # share of images that only one of two models of like accuracy gets right; an assumption


class PublishedNoise(NamedTuple):
    """Published standard deviation of a score between seeds, in points, over how many trainings, and its source."""

    sd: float
    trainings: int
    source: str


ISSUE = "github.com/facebookresearch/mae, issue 91"
NOISE: dict[tuple[str, str, str], PublishedNoise] = {  # task, metric, size; pretraining and fine-tuning repeated
    ("imagenet1k", "top1", "base"): PublishedNoise(0.065, 5, ISSUE),
    ("imagenet1k", "top1", "large"): PublishedNoise(0.058, 5, ISSUE),
    ("imagenet1k", "top1", "huge"): PublishedNoise(0.055, 4, ISSUE),
}


def published_noise(task: str, metric: str, size: str) -> PublishedNoise | None:
    """The published standard deviation between seeds of a size on a task; else the largest of the task's sizes."""
    same_task = {key: noise for key, noise in NOISE.items() if key[:2] == (task, metric)}
    return same_task.get((task, metric, size)) or (max(same_task.values()) if same_task else None)


def minimal_detectable_difference(images_variance: float, seeds_variance: float = 0.0, df: float = inf) -> float:
    """Difference in points that a two-sided test at 5 % finds with 80 % power.

    images_variance, seeds_variance: of the difference of two means, in points squared. Both are estimated with `df`
    degrees of freedom: what images do to a score differs mostly from model to model, so that only the seeds show it.
    Source: Cohen 1988, chapter 2, with quantiles of Student's t in place of the normal ones.
    """
    from scipy.special import ndtri, stdtrit  # `bench list` does not pay for importing scipy

    quantiles = [float(ndtri(q) if df == inf else stdtrit(df, q)) for q in (1 - ALPHA / 2, POWER)]
    return sum(quantiles) * sqrt(images_variance + seeds_variance)


def accuracy_variance(images: int, discordant: float = DISCORDANT) -> float:
    """Variance in points squared, over images, of a paired difference of two accuracies that are nearly equal."""
    return 100.0**2 * discordant / images


def detectable_accuracy_difference(seeds: int, images: int, noise: PublishedNoise | None) -> float:
    """Minimal detectable difference of two accuracies, each over `seeds` trainings; one seed: over images alone."""
    by_images = accuracy_variance(images)
    if noise is None or seeds < 2:
        return minimal_detectable_difference(by_images)
    return minimal_detectable_difference(by_images, 2 * noise.sd**2 / seeds, 2 * (seeds - 1))


def sentences(plan: Plan) -> list[str]:
    """For every task, the minimal detectable difference of its arms, as a sentence. Accuracies only."""
    by_task: dict[str, str] = {}
    for arm in plan.arms:
        split = plan.stages[next(iter(arm.stages.values()))["evaluate"]].data.get("val")
        if arm.metric == "top1" and split is not None and split.images and arm.task not in by_task:
            seeds = min(len(other.stages) for other in plan.arms if other.task == arm.task)
            noise = published_noise(arm.task, arm.metric, arm.size)
            by_task[arm.task] = _sentence(arm.task, seeds, split.images, noise)
    return list(by_task.values())


def _sentence(task: str, seeds: int, images: int, noise: PublishedNoise | None) -> str:
    points = detectable_accuracy_difference(seeds, images, noise)
    many = f"{seeds} seed" + ("s" if seeds > 1 else "")
    finding = f"{task}: {many} and {images:,} images tell {points:.2f} points apart in 80 of 100 studies"
    assumed = f"if {100 * DISCORDANT:.0f} % of the images are answered differently"
    if seeds < 2:
        return f"{finding}, {assumed}; with one seed that is said of the trained weights, not of the methods"
    if noise is None:
        return f"{finding} at best, {assumed}: how much training again moves a score here is not known"
    return f"{finding}, {assumed} and training again moves a score by {noise.sd:g} points (sd; {noise.source})"
