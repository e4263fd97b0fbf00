"""Rates are functions of the step; groups follow the authors' rule; the optimiser obeys both."""

import pytest
import torch
from torch import nn

from bench.config.schema import Recipe
from bench.errors import BenchError
from bench.training.optim import build_optimizer, decays, layer_of, parameter_groups, set_rates
from bench.training.schedule import learning_rate, peak


class Tiny(nn.Module):
    """A backbone of two blocks, a head, and a frozen teacher."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.depth = 2
        self.backbone.cls_token = nn.Parameter(torch.ones(1, 1, 4))
        self.backbone.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 2)
        self.teacher = nn.Linear(4, 2).requires_grad_(False)


def rates(recipe, steps=10, steps_per_epoch=5):
    return [learning_rate(recipe, i, steps=steps, steps_per_epoch=steps_per_epoch) for i in range(steps)]


def test_the_rate_scales_with_the_batch_only_where_a_reference_batch_is_named():
    assert peak(Recipe(lr=5e-4, batch_size=1024, lr_reference_batch=512)) == 1e-3
    assert peak(Recipe(lr=5e-4, batch_size=1024)) == 5e-4


def test_min_lr_does_not_scale_with_the_batch():
    recipe = Recipe(schedule="linear", lr=1.0, min_lr=0.5, batch_size=4, lr_reference_batch=1)
    assert rates(recipe)[-1] == pytest.approx(0.5 + 3.5 * 0.1)


def test_a_warm_up_starts_at_warmup_lr_and_reaches_the_peak():
    assert rates(Recipe(lr=1.0, warmup_lr=0.1, warmup_steps=4))[:5] == pytest.approx([0.1, 0.4, 0.7, 1.0, 1.0])


def test_warm_up_epochs_may_be_fractions():
    assert rates(Recipe(lr=1.0, warmup_epochs=0.4, schedule="constant"))[:3] == [0.0, 1.0, 1.0]


def test_a_warm_up_that_fills_the_stage_is_refused_with_what_would_fit():
    with pytest.raises(BenchError, match=r"10 steps fills the 10 steps.*warmup_epochs below 2"):
        rates(Recipe(warmup_epochs=2))


def test_blocks_learn_slower_the_earlier_they_stand():
    groups = parameter_groups(Tiny(), Recipe(layer_decay=0.5))
    scale = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert scale["backbone.cls_token"] == 1 / 8
    assert (scale["backbone.blocks.0.weight"], scale["backbone.blocks.1.weight"]) == (1 / 4, 1 / 2)
    assert scale["head.weight"] == 1


def test_a_head_with_blocks_of_its_own_keeps_the_full_rate():
    assert layer_of("head.blocks.0.weight", 12) == 13
    assert layer_of("backbone.rel_pos_bias.relative_position_bias_table", 12) == 13


def test_frozen_parameters_are_in_no_group():
    names = [name for group in parameter_groups(Tiny(), Recipe()) for name in group["names"]]
    assert names and not any(name.startswith("teacher") for name in names)


def test_the_mask_token_decays_and_the_class_token_does_not():
    table = nn.Parameter(torch.ones(1, 1, 4))
    assert decays("backbone.mask_token", table)
    assert not decays("backbone.cls_token", table)
    assert not decays("backbone.norm.weight", nn.Parameter(torch.ones(4)))


def test_layer_decay_needs_a_backbone_with_layers():
    with pytest.raises(BenchError, match=r"layer_decay = 0.5 needs a transformer"):
        parameter_groups(nn.Linear(2, 2), Recipe(layer_decay=0.5))


def test_a_decay_that_starts_at_zero_reaches_the_decaying_groups_alone():
    recipe = Recipe(weight_decay=0.0, weight_decay_end=1.0)
    optimizer = build_optimizer(parameter_groups(Tiny(), recipe), recipe, torch.device("cpu"))
    set_rates(optimizer, recipe, 5, steps=10, steps_per_epoch=5)
    assert {group["name"]: group["weight_decay"] for group in optimizer.param_groups} == {
        "decay": pytest.approx(0.5),
        "no_decay": 0.0,
    }


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_first_step_of_a_warm_up_from_zero_moves_nothing(kind):
    model, recipe = Tiny(), Recipe(optimizer=kind, warmup_steps=3)
    before = model.head.weight.detach().clone()
    optimizer = build_optimizer(parameter_groups(model, recipe), recipe, torch.device("cpu"))
    for step, moved in ((0, False), (1, True)):
        assert set_rates(optimizer, recipe, step, steps=10, steps_per_epoch=5).lr == pytest.approx(step * 5e-4)
        model.head.weight.grad = torch.ones_like(model.head.weight)
        optimizer.step()
        assert torch.equal(before, model.head.weight) is not moved


def test_layer_scales_multiply_the_scheduled_rate():
    recipe = Recipe(lr=1.0, layer_decay=0.5, schedule="constant")
    optimizer = build_optimizer(parameter_groups(Tiny(), recipe), recipe, torch.device("cpu"))
    set_rates(optimizer, recipe, 0, steps=10, steps_per_epoch=5)
    assert {group["lr"] for group in optimizer.param_groups} == {1 / 8, 1 / 4, 1 / 2, 1.0}
