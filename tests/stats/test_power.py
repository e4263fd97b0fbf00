"""The minimal detectable difference of a study, before it is run."""

import math

import pytest

from bench.stats import power


def test_one_seed_has_a_detectable_difference_over_images_alone() -> None:
    # 1.96 + 0.84 standard errors of a paired difference with 8 % of 50,000 images answered differently
    assert power.detectable_accuracy_difference(1, 50_000, None) == pytest.approx(
        2.8016 * 100 * math.sqrt(0.08 / 50_000), rel=1e-3
    )


def test_more_seeds_and_more_images_find_smaller_differences() -> None:
    noise = power.published_noise("imagenet1k", "top1", "base")
    by_seeds = [power.detectable_accuracy_difference(seeds, 50_000, noise) for seeds in (2, 3, 5, 10)]
    assert by_seeds == sorted(by_seeds, reverse=True)
    assert power.detectable_accuracy_difference(3, 2_000, noise) > power.detectable_accuracy_difference(
        3, 50_000, noise
    )


def test_few_seeds_cost_more_than_the_normal_distribution_says() -> None:
    assert power.minimal_detectable_difference(0.0, 1.0, 2) == pytest.approx(4.303 + 1.061, abs=1e-3)
    assert power.minimal_detectable_difference(0.0, 1.0) == pytest.approx(1.960 + 0.842, abs=1e-3)


def test_published_noise_has_a_source_and_is_of_its_task_only() -> None:
    noise = power.published_noise("imagenet1k", "top1", "small")
    assert noise is not None
    assert noise.sd == 0.065
    assert noise.source.startswith("github.com/")
    assert power.published_noise("cifar100", "top1", "base") is None
