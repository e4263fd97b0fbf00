"""Blocks are rectangles within bounds, counts are upper bounds, and seeds decide everything."""

import random

import numpy as np
import pytest

from bench.errors import BenchError
from bench.pipeline.masking import BlockMasking, NoMasking, RandomMasking, build

BEIT = {"hidden_fraction": 75 / 196, "block_min_fraction": 16 / 196, "block_max_fraction": 1.0}


def block_masking_in_plain_loops(grid, hidden_patches, block_min, block_max):
    """The rule again, cell by cell, over a set of hidden cells."""
    hidden = set()
    while len(hidden) < hidden_patches:
        most = min(hidden_patches - len(hidden), block_max)
        for _ in range(10):
            area = random.uniform(block_min, most)
            aspect = np.exp(random.uniform(np.log(0.3), np.log(1 / 0.3)))
            height, width = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
            if height < grid and width < grid:
                top, left = random.randint(0, grid - height), random.randint(0, grid - width)
                block = {(top + i, left + j) for i in range(height) for j in range(width)} - hidden
                if 0 < len(block) <= most:
                    hidden |= block
                    break
        else:
            break
    return hidden


@pytest.mark.parametrize("counts", [(14, 75, 16, 75), (14, 120, 16, 196), (6, 14, 3, 36), (4, 6, 1, 16)])
def test_block_masking_is_the_plain_rule(counts):
    for seed in range(50):
        random.seed(seed)
        hidden = BlockMasking(*counts)()
        random.seed(seed)
        assert set(zip(*np.nonzero(hidden), strict=True)) == block_masking_in_plain_loops(*counts)


def test_published_fractions_are_the_published_counts_at_14x14():
    assert build("block", 14, **BEIT) == BlockMasking(14, 75, 16, 196)
    assert build("block", 14, **{**BEIT, "hidden_fraction": 120 / 196}) == BlockMasking(14, 120, 16, 196)


def test_a_block_maximum_above_the_count_changes_nothing():
    random.seed(3)
    capped = [BlockMasking(14, 75, 16, 75)() for _ in range(20)]
    random.seed(3)
    assert np.array_equal(capped, [BlockMasking(14, 75, 16, 196)() for _ in range(20)])


def test_the_count_is_never_exceeded_and_not_always_reached():
    random.seed(0)
    counts = [int(BlockMasking(14, 75, 16, 75)().sum()) for _ in range(300)]
    assert max(counts) == 75 and min(counts) < 75


def test_random_masking_hides_the_exact_count_everywhere_alike():
    random.seed(0)
    drawn = np.stack([RandomMasking(6, 12)() for _ in range(3000)])
    assert (drawn.sum(axis=(1, 2)) == 12).all()
    assert abs(drawn.mean(axis=0) - 1 / 3).max() < 5 * (2 / 9 / 3000) ** 0.5


def test_blocks_hang_together_and_random_patches_do_not():
    def neighbours(masking):
        drawn = np.stack([masking() for _ in range(200)])
        return float((drawn[:, 1:] & drawn[:, :-1]).mean())

    random.seed(0)
    assert neighbours(BlockMasking(14, 75, 16, 75)) > 2 * neighbours(RandomMasking(14, 75))


def test_no_masking_hides_nothing():
    assert build("none", 5, **BEIT) == NoMasking(5)
    assert not NoMasking(5)().any()


@pytest.mark.parametrize("fraction", [0.0, 0.01, 1.0])
def test_a_fraction_that_hides_nothing_or_everything_is_refused(fraction):
    with pytest.raises(BenchError, match=r"of 16 patches; between 1 and 15 can be hidden"):
        build("block", 4, **{**BEIT, "hidden_fraction": fraction})


def test_an_unknown_masking_is_answered_with_the_nearest():
    with pytest.raises(BenchError, match="Did you mean block"):
        build("blok", 14, **BEIT)


def test_block_bounds_must_be_in_order():
    with pytest.raises(BenchError, match=r"block_max_fraction = 0.1 is below block_min_fraction = 0.5"):
        build("block", 14, hidden_fraction=0.4, block_min_fraction=0.5, block_max_fraction=0.1)
