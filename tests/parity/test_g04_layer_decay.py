"""Parameter groups: rate, decay and group of every parameter of the authors' models."""

import pytest
import torch
from recorded import read
from torch import nn

from bench.config.schema import Recipe
from bench.training.optim import layer_of, parameter_groups

GOLDEN = "g04_layer_decay"
CASES = "*.json"


def named(parameters):
    """A module whose parameters have the recorded names (under `backbone.`) and numbers of dimensions."""
    objective = nn.Module()
    for parameter in parameters:
        *path, last = ours(parameter["name"]).split(".")
        module = objective
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(torch.zeros((1,) * parameter["ndim"])))
    return objective


def ours(name):
    return name if name.startswith(("decode_head", "auxiliary_head")) else f"backbone.{name.removeprefix('backbone.')}"


@pytest.fixture
def recorded(case):
    record = read(case)
    assert record["parameters"]
    return record


def test_every_parameter_has_the_recorded_layer_rate_decay_and_group(recorded):
    objective = named(recorded["parameters"])
    depth = objective.backbone.depth = recorded["n_layers"]
    recipe = Recipe(layer_decay=recorded["layer_decay"] or 1.0, weight_decay=recorded["weight_decay"])
    undecayed = recorded.get("no_decay_names", [])  # none in segmentation, where the authors' prefix hides them
    groups = parameter_groups(objective, recipe, undecayed=undecayed)
    assert {group["name"] for group in groups} == set(recorded["groups"])
    group_of = {name: group for group in groups for name in group["names"]}
    assert len(group_of) == len(recorded["parameters"])
    for parameter in recorded["parameters"]:
        name = ours(parameter["name"])
        group = group_of[name]
        assert group["lr_scale"] == pytest.approx(parameter["lr_scale"], rel=1e-12), parameter["name"]
        assert group["weight_decay"] == parameter["weight_decay"], parameter["name"]
        assert group["decay"] == parameter["decay"], parameter["name"]
        assert group["name"] == parameter["group"], parameter["name"]
        assert parameter["layer_id"] in (None, layer_of(name, depth)), parameter["name"]
        if "lr" in parameter:
            assert recorded["base_lr"] * group["lr_scale"] == pytest.approx(parameter["lr"], rel=1e-12)


def test_every_layer_has_the_recorded_scale(recorded):
    depth, rate = recorded["n_layers"], recorded["layer_decay"]
    if rate is None:
        assert recorded["scales_by_layer_id"] is None
        return
    names = ["backbone.cls_token", *(f"backbone.blocks.{i}.norm1.weight" for i in range(depth)), "head.weight"]
    objective = named([{"name": name, "ndim": 2} for name in names[:-1]] + [{"name": "fc_norm.weight", "ndim": 1}])
    objective.backbone.depth = depth
    groups = parameter_groups(objective, Recipe(layer_decay=rate))
    assert [group["lr_scale"] for group in groups] == pytest.approx(recorded["scales_by_layer_id"], rel=1e-12)


def test_the_default_exemptions_are_the_authors(recorded):
    objective = named(recorded["parameters"])
    groups = parameter_groups(objective, Recipe(weight_decay=recorded["weight_decay"]))
    undecayed = {name for group in groups if not group["decay"] for name in group["names"]}
    expected = {ours(p["name"]) for p in recorded["parameters"] if not p["decay"]}
    if "no_decay_names" not in recorded:  # BEiT's segmentation code decays these two, our loop does so there as well
        expected |= {ours(p["name"]) for p in recorded["parameters"]} & {"backbone.cls_token", "backbone.pos_embed"}
    assert undecayed == expected
