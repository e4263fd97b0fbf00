"""How long the statistics of a study take: ours beside a plain bootstrap, one replicate at a time.

Simulated answers: every image has a difficulty that all arms share, every training its own noise.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Mapping

import numpy as np

from bench.config.stage import PlannedArm
from bench.reporting.analysis.comparisons import compare_arms
from bench.reporting.analysis.outcomes import ScoredArm, SeedResult
from bench.stats.bootstrap import Counts, bootstrap

CLASSES = 150  # of areas, as in ADE20K; an image holds about one in ten


def accuracies(arms: int, seeds: int, images: int) -> list[ScoredArm]:
    """Arms about 83 % right and 0.3 points apart; 8 to 10 % of the images are answered differently by two of them."""
    generator = np.random.default_rng(0)
    difficulty = generator.normal(size=images)
    made = []
    for arm in range(arms):
        noise = 0.5 * generator.normal(size=(seeds, images))
        hits = (1.06 + 0.014 * arm + noise > difficulty).astype(float)[:, :, None]
        made.append(_arm(f"arm {arm}", hits, np.ones_like(hits)))
    return made


def areas(arms: int, seeds: int, images: int) -> list[ScoredArm]:
    """Arms with intersections and unions of many classes, most of them absent from an image."""
    generator = np.random.default_rng(0)
    union = generator.integers(1, 50_000, (images, CLASSES)) * (generator.random((images, CLASSES)) < 0.1)
    made = []
    for arm in range(arms):
        share = generator.beta(5, 5 - 0.02 * arm, (seeds, images, CLASSES))
        made.append(_arm(f"arm {arm}", np.floor(share * union), np.broadcast_to(union.astype(float), share.shape)))
    return made


def _arm(name: str, hits: np.ndarray, totals: np.ndarray) -> ScoredArm:
    planned = PlannedArm(
        id=name, label=name, method="vit", variant="", size="base", task="simulated", budget="",
        metric="top1" if hits.shape[2] == 1 else "mIoU", fidelity="exact", stages={s: {} for s in range(len(hits))},
    )  # fmt: skip
    ids = tuple(map(str, range(hits.shape[1])))
    pairs = enumerate(zip(hits, totals, strict=True))
    return ScoredArm(planned, tuple(SeedResult(seed, {}, ids, *pair) for seed, pair in pairs))


def plain(arms: Mapping[str, Counts], replicates: int) -> np.ndarray:
    """What one would write first: draw images, take their rows, take the mean; (models, replicates)."""
    generator = np.random.default_rng(0)
    hits, totals = (np.concatenate([getattr(c, part) for c in arms.values()]) for part in ("hits", "totals"))
    scores = []
    for _ in range(replicates):
        images = generator.integers(0, hits.shape[1], hits.shape[1])
        sums = hits[:, images].sum(1), totals[:, images].sum(1)
        scores.append(100 * (sums[0] / np.maximum(sums[1], 1)).mean(-1))
    return np.stack(scores, axis=1)


def main() -> None:
    """Print the times, their ratio, and the peak of memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("arms", 12), ("seeds", 5), ("images", 50_000), ("draws", 10_000), ("plain-draws", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--areas", action="store_true", help="mIoU of 150 classes instead of accuracy")
    options = parser.parse_args()
    arms = (areas if options.areas else accuracies)(options.arms, options.seeds, options.images)
    counts = {arm.planned.id: arm.counts() for arm in arms}
    start = time.process_time()
    compare_arms("simulated", arms, options.draws)
    whole = time.process_time() - start
    start = time.process_time()
    bootstrap(counts, options.draws)
    ours = max(time.process_time() - start, 1e-9)
    start = time.process_time()
    plain(counts, options.plain_draws)
    other = (time.process_time() - start) * options.draws / options.plain_draws
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{options.arms} arms, {options.seeds} seeds, {options.images:,} images, {options.draws:,} draws")
    print(f"seconds of CPU: analysis {whole:.1f}, of it bootstrap {ours:.1f}; plain bootstrap {other:.0f} (from "
          f"{options.plain_draws} draws); ratio {other / ours:.0f}; most memory {memory:.2f} GB")  # fmt: skip


if __name__ == "__main__":
    main()
