"""The order of repeated augmentation equals that of DeiT's sampler, whatever the number of devices."""

import re

import pytest
import torch
from recorded import arrays, read

from bench.pipeline.sampler import Batches, permutation, repeat_indices

GOLDEN = "g10_sampling_and_mixing"
WHOLE = 256  # the authors round an epoch down to a multiple of this
NAME = re.compile(r"(?P<case>.+)_ws(?P<world>\d+)_(ep(?P<epoch>\d+)|unshuffled_rank(?P<rank>\d+))")


@pytest.fixture
def facts(golden):
    return read(golden / GOLDEN / "repeated_augmentation.json")


@pytest.fixture
def expected(golden):
    return {
        NAME.fullmatch(name): rows
        for name, rows in arrays(golden / GOLDEN / "repeated_augmentation.safetensors").items()
    }


def shown(indices, fact, rank, world):
    """What one device sees of `indices`: every world-th entry, as many as there are in whole steps of 256."""
    size = fact["dataset_size"]
    order = repeat_indices(indices, fact["num_repeats"])
    order = torch.cat([order, order])[: -(-len(order) // world) * world]  # filled up from its own beginning
    return order[rank::world][: size // WHOLE * WHOLE // world].tolist()


def test_every_device_gets_the_images_of_the_published_sampler(facts, expected):
    assert None not in expected
    assert {name["case"] for name in expected} == facts.keys()
    assert {name["rank"] is None for name in expected} == {False, True}
    for name, rows in expected.items():
        fact, world = facts[name["case"]], int(name["world"])
        size = fact["dataset_size"]
        indices = torch.arange(size) if name["rank"] else permutation(int(name["epoch"]), size)
        ranks = [int(name["rank"])] if name["rank"] else range(world)
        ours = [shown(indices, fact, rank, world) for rank in ranks]
        assert ours == rows.reshape(len(ours), -1).tolist(), name[0]
        assert len(ours[0]) == fact["selected_per_rank"][name["world"]]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_our_batches_deal_the_copies_of_an_image_to_different_devices_in_that_order(world):
    """A step's global batch is a run of the order, dealt in turn, so that epochs are the sampler's."""
    size, batch, repeats = 64, 16, 3
    every = [
        Batches(size, batch, seed=5, repeats=repeats, rank=rank, processes=world, micro=1) for rank in range(world)
    ]
    for step in range(every[0].steps_per_epoch):
        dealt = [[draw.image for micro in batches.micro_batches(step) for draw in micro] for batches in every]
        order = [dealt[position % world][position // world] for position in range(batch)]
        whole = [draw.image for draw in Batches(size, batch, seed=5, repeats=repeats).micro_batches(step)[0]]
        assert order == whole
