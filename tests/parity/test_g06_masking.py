"""Masking: the first choices draw for draw, and the distribution over many.

A mean over n choices of ours and one over the recorded ones may differ by five standard errors. That the same test
tells other maskings apart is tested, too.
"""

import random
from dataclasses import dataclass

import numpy as np
import pytest
from masks import correlation, errors_of_correlation, errors_of_histogram, errors_of_mean, mask_statistics
from recorded import arrays, read

from bench.pipeline.masking import ASPECT, BlockMasking, RandomMasking

GOLDEN = "g06_masking"
CASES = "*.json"
SAMPLES = 3000
ERRORS = 5.0
PROPORTIONS = ("mean_mask", "joint_probability")


@pytest.fixture
def options(case):
    return read(case)


@pytest.fixture
def tables(case):
    return {name: value.numpy() for name, value in arrays(case.with_suffix(".safetensors")).items()}


@pytest.fixture
def masking(options):
    count = options["num_masking_patches"]
    block_max = options["max_num_patches"] or count
    return BlockMasking(options["input_size"], count, options["min_num_patches"], block_max)


def choose(masking, samples=SAMPLES):
    random.seed(7)
    return np.stack([masking() for _ in range(samples)])


def errors(choices, options, tables):
    """The largest distance from each recorded table, in standard errors."""
    edges, shifts = tables["bbox_log_aspect_edges"], len(tables["joint_probability"])
    bins = {name: len(table) for name, table in tables.items() if name.endswith("_hist")}
    ours, samples = mask_statistics(choices, bins=bins, edges=edges, shifts=shifts), options["samples"]
    deviations = {name: errors_of_histogram(ours[name], tables[name], samples) for name in bins}
    deviations |= {name: errors_of_mean(ours[name], tables[name], samples) for name in PROPORTIONS}
    pairs = ours["mean_mask"], ours["joint_probability"]
    deviations["pair_correlation"] = errors_of_correlation(*pairs, tables["pair_correlation"], samples)
    hidden, summary = ours["count_hist"].argmax(1), {"count": options["mean_count"]}
    deviations["mean_count"] = errors_of_mean(hidden, summary["count"], samples)
    deviations["std_count"] = errors_of_mean((hidden - hidden.mean()) ** 2, options["std_count"] ** 2, samples)
    deviations["fraction_exactly_target"] = errors_of_mean(
        hidden == options["num_masking_patches"], options["fraction_exactly_target"], samples
    )
    return {name: float(np.abs(value).max()) for name, value in deviations.items()}


def test_the_first_choices_are_the_authors_draw_for_draw(masking, options, tables):
    random.seed(options["python_random_seed"])
    ours = np.stack([masking() for _ in tables["first_masks"]])
    np.testing.assert_array_equal(ours, tables["first_masks"].astype(bool))


def test_the_distribution_is_the_recorded_one(masking, options, tables):
    assert options["min_aspect"] == pytest.approx(ASPECT) and options["max_aspect"] == pytest.approx(1 / ASPECT)
    choices = choose(masking)
    deviations = errors(choices, options, tables)
    assert {name: error for name, error in deviations.items() if not error < ERRORS} == {}
    assert choices.sum(axis=(1, 2)).max() <= options["num_masking_patches"]


def test_the_recorded_summary_is_that_of_the_recorded_tables(options, tables):
    counts, numbers = tables["count_hist"], np.arange(len(tables["count_hist"]))
    assert counts.sum() == options["samples"]
    assert (options["min_count"], options["max_count"]) == (numbers[counts > 0].min(), numbers[counts > 0].max())
    assert options["mean_count"] == pytest.approx((counts * numbers).sum() / options["samples"])
    components, largest = tables["component_count_hist"], tables["largest_component_hist"]
    mean = (components * np.arange(len(components))).sum() / options["samples"]
    assert options["mean_components_per_mask"] == pytest.approx(mean, abs=1e-4)
    mean = (largest * np.arange(len(largest))).sum() / options["samples"]
    assert options["mean_largest_component"] == pytest.approx(mean, abs=1e-4)
    expected = correlation(tables["mean_mask"], tables["joint_probability"])
    np.testing.assert_allclose(tables["pair_correlation"], expected, atol=1e-9)
    for way, place in (("vertical", (1, 0)), ("horizontal", (0, 1))):
        assert options[f"neighbour_correlation_{way}"] == pytest.approx(tables["pair_correlation"][place])
        assert options[f"neighbour_joint_{way}"] == pytest.approx(tables["joint_probability"][place])


@dataclass(frozen=True)
class ExactMasking:
    """Blocks as ours, then single patches until exactly as many are hidden as were asked for."""

    blocks: BlockMasking

    def __call__(self):
        hidden = self.blocks()
        visible = np.flatnonzero(~hidden.ravel())
        missing = self.blocks.hidden_patches - int(hidden.sum())
        hidden.ravel()[random.sample(visible.tolist(), missing)] = True
        return hidden


def test_masking_at_random_would_be_found_out(masking, options, tables):
    deviations = errors(choose(RandomMasking(masking.grid, masking.hidden_patches), 500), options, tables)
    statistics = ("pair_correlation", "component_count_hist", "largest_component_hist")
    assert all(deviations[name] > 2 * ERRORS for name in statistics), deviations


def test_hiding_exactly_as_many_as_asked_for_would_be_found_out(masking, options, tables):
    if options["fraction_exactly_target"] > 0.95:
        pytest.skip(f"{options['num_masking_patches']} patches are nearly always reached: here the two are one")
    deviations = errors(choose(ExactMasking(masking), 500), options, tables)
    assert all(deviations[name] > 2 * ERRORS for name in ("count_hist", "fraction_exactly_target")), deviations
