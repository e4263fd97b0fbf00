"""Dropout belongs to the image: the draws are right on average, and do not depend on how a batch is cut."""

import pytest
import torch
from torch import nn

from bench.models.dropout import Dropout, replace_dropouts, seed_dropout


def network() -> nn.Module:
    net = nn.Sequential(nn.Dropout(0.3), nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.0)))
    replace_dropouts(net)
    return net.train()


def test_active_dropouts_are_replaced_and_idle_ones_are_not():
    assert [type(layer) for layer in network().modules() if isinstance(layer, nn.Dropout)] == [
        Dropout,
        Dropout,
        nn.Dropout,
    ]


def test_the_parts_of_a_batch_are_treated_as_in_the_whole():
    net, images = network(), torch.ones(8, 5, 7)
    seed_dropout(net, seed=0, step=3, positions=torch.arange(8))
    whole = net(images)
    for rows in ([0, 4], [7, 2, 1], [5]):
        seed_dropout(net, seed=0, step=3, positions=torch.tensor(rows))
        assert torch.equal(net(images[rows]), whole[rows])


@pytest.mark.parametrize("other", [{"seed": 1, "step": 3}, {"seed": 0, "step": 4}])
def test_seeds_and_steps_have_draws_of_their_own(other):
    net, images = network(), torch.ones(4, 50)
    results = []
    for place in ({"seed": 0, "step": 3}, other):
        seed_dropout(net, **place, positions=torch.arange(4))
        results.append(net(images))
    assert not torch.equal(*results)


def test_layers_and_images_have_draws_of_their_own():
    net = nn.Sequential(Dropout(0.5), Dropout(0.5))
    seed_dropout(net.train(), seed=0, step=0, positions=torch.arange(2))
    first, second = (layer(torch.ones(2, 100)) for layer in net)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_the_mean_is_kept():
    layer = Dropout(0.3).train()
    seed_dropout(layer, seed=0, step=0, positions=torch.arange(100))
    dropped = layer(torch.ones(100, 1000))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)


def test_nothing_is_dropped_in_evaluation():
    net = network().eval()
    seed_dropout(net, seed=0, step=0, positions=torch.arange(2))
    assert torch.equal(net(torch.ones(2, 9)), torch.ones(2, 9))


def test_gradients_flow_through_what_is_kept():
    layer, images = Dropout(0.5).train(), torch.ones(3, 20, requires_grad=True)
    seed_dropout(layer, seed=0, step=0, positions=torch.arange(3))
    dropped = layer(images)
    dropped.sum().backward()
    assert torch.equal(images.grad, dropped.detach())
