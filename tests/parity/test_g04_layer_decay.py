"""Parameter groups: rate, decay and group of every parameter of the authors' models."""

import json

import pytest
import torch
from torch import nn

from bench.optim import parameter_groups
from bench.spec import Recipe

GOLDEN = "g04_layer_decay"
CASES = "*.json"


def named(parameters):
    """A module whose parameters have the recorded names (under `backbone.`) and numbers of dimensions."""
    objective = nn.Module()
    for parameter in parameters:
        *path, last = f"backbone.{parameter['name'].removeprefix('backbone.')}".split(".")
        if "decode_head" in path or "auxiliary_head" in path:
            path = path[1:]
        module = objective
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(torch.zeros((1,) * parameter["ndim"])))
    return objective


def ours(name):
    return name if "_head." in name and not name.startswith("lm_head") else f"backbone.{name.removeprefix('backbone.')}"


@pytest.fixture
def recorded(case):
    return json.loads(case.read_text())


def test_every_parameter_has_the_recorded_rate_and_decay(recorded):
    objective = named(recorded["parameters"])
    objective.backbone.depth = recorded["n_layers"]
    recipe = Recipe(layer_decay=recorded["layer_decay"] or 1.0, weight_decay=recorded["weight_decay"])
    undecayed = recorded.get("no_decay_names", [])  # none in segmentation, where the authors' prefix hides them
    groups = parameter_groups(objective, recipe, undecayed=undecayed)
    found = {name: group for group in groups for name in group["names"]}
    assert len(found) == len(recorded["parameters"])
    for parameter in recorded["parameters"]:
        group = found[ours(parameter["name"])]
        assert group["lr_scale"] == pytest.approx(parameter["lr_scale"], rel=1e-12), parameter["name"]
        assert group["weight_decay"] == parameter["weight_decay"], parameter["name"]
        assert group["name"] == parameter["group"], parameter["name"]


def test_the_default_exemptions_are_the_authors(recorded):
    if "no_decay_names" not in recorded:
        pytest.skip("segmentation exempts nothing")
    objective = named(recorded["parameters"])
    groups = parameter_groups(objective, Recipe(weight_decay=recorded["weight_decay"]))
    undecayed = {name for group in groups if not group["decay"] for name in group["names"]}
    assert undecayed == {ours(p["name"]) for p in recorded["parameters"] if not p["decay"]}
