"""Masking: the first choices draw for draw, and the distribution over many."""

import json
import random

import numpy as np
import pytest
from safetensors.numpy import load_file

from bench.masking import BlockMasking

GOLDEN = "g06_masking"
CASES = "*.json"
SAMPLES = 2000


@pytest.fixture
def recorded(case):
    options = json.loads(case.read_text())
    count = options["num_masking_patches"]
    block_max = options["max_num_patches"] or count
    masking = BlockMasking(options["input_size"], count, options["min_num_patches"], block_max)
    return masking, options, load_file(case.with_suffix(".safetensors"))


def test_the_first_choices_are_the_authors_draw_for_draw(recorded):
    masking, options, arrays = recorded
    random.seed(options["python_random_seed"])
    ours = np.stack([masking() for _ in arrays["first_masks"]])
    np.testing.assert_array_equal(ours, arrays["first_masks"].astype(bool))


def test_the_distribution_is_the_recorded_one(recorded):
    masking, options, arrays = recorded
    random.seed(7)
    ours = np.stack([masking() for _ in range(SAMPLES)])
    counts = ours.sum(axis=(1, 2))
    error = options["std_count"] * (1 / SAMPLES + 1 / options["samples"]) ** 0.5
    assert abs(counts.mean() - options["mean_count"]) < 5 * error
    assert counts.max() <= options["num_masking_patches"]
    expected = arrays["mean_mask"]
    spread = np.sqrt(expected * (1 - expected) * (1 / SAMPLES + 1 / options["samples"]))
    assert (abs(ours.mean(axis=0) - expected) < 5 * spread).all()
