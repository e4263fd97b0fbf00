"""Starting weights: spread, bounds and shape of every parameter, as the authors' code draws them."""

import json
import math
from typing import NamedTuple

import pytest
import torch
from torch import nn

from bench.backbones import build
from bench.initialisation import initialise
from bench.objective import classify
from bench.spec import Model, Recipe

GOLDEN = "g12_initialisation"
CASES = "*.json"


def network(name, options):
    """Our network of the recorded case: a classifier, or a pretraining backbone with a linear head."""
    size = {"width": options["embed_dim"], "depth": options["depth"], "heads": options["num_heads"]}
    common = {**size, "layer_scale": options.get("init_values") or 0.0, "classes": options.get("num_classes", 0)}
    if name.startswith("deit"):
        return classify(Model(trunk="vit", distilled=name.endswith("distilled"), **common), Recipe())
    if name == "beit_finetune":
        recipe = Recipe(pool="mean", head_init_scale=options["init_scale"])
        return classify(Model(trunk="beit", position="relative", **common), recipe)
    objective = nn.Module()
    objective.backbone = build(Model(trunk="beit", position="shared-relative", **common), hides=True)
    objective.lm_head = nn.Linear(size["width"], options.get("vocab_size", size["width"]))
    initialise(objective, "beit-pretrain")
    return objective


class Pair(NamedTuple):
    """A parameter of ours, and what was recorded of the authors'."""

    name: str
    ours: torch.Tensor
    recorded: dict


def pairs(case):
    """All parameters of a case. One of ours without a counterpart, or the other way round, is an error."""
    recorded = json.loads(case.read_text())
    torch.manual_seed(0)
    parameters = network(case.stem, recorded["options"]).named_parameters()
    found = {name.removeprefix("backbone.").removeprefix("head."): value.detach() for name, value in parameters}
    assert found.keys() == recorded["parameters"].keys()
    return [Pair(name, value, recorded["parameters"][name]) for name, value in found.items()]


def test_every_parameter_starts_with_the_recorded_spread_mean_and_bounds(case):
    for name, ours, recorded in pairs(case):
        (low, high), std, count = recorded["std_over_seeds_min_max"], recorded["std"], recorded["numel"]
        assert ours.numel() == count, name
        spread = pytest.approx(std, abs=high - low + 5 * std / math.sqrt(2 * count) + 1e-7)
        assert ours.std(unbiased=False).item() == spread, name
        assert ours.mean().item() == pytest.approx(recorded["mean"], abs=8 * std / math.sqrt(count) + 1e-7), name
        if recorded["excess_kurtosis"] < -0.5:  # uniform, or a normal cut off at one deviation
            assert ours.abs().max().item() <= recorded["abs_max"] * 1.02, name
