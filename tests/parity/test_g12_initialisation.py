"""Starting weights: spread, bounds and shape of every parameter, as the authors' code draws them."""

import math
from typing import NamedTuple

import pytest
import torch
from recorded import model_of, read
from torch import nn

from bench.config.schema import Recipe
from bench.methods.classification import build_classifier
from bench.models.backbone import build
from bench.models.init import initialise

GOLDEN = "g12_initialisation"
CASES = "*.json"
MANY = 20_000  # numbers, from which a fourth moment tells the shape of their distribution


def network(options, names):
    """Our network of the recorded case: a classifier, or a pretraining backbone with a linear head."""
    if "num_classes" not in options:
        objective = nn.Module()
        objective.backbone = build(model_of(options), mask_token=True)
        objective.lm_head = nn.Linear(options["embed_dim"], options.get("vocab_size", options["embed_dim"]))
        initialise(objective, "beit-pretrain")
        return objective
    if "init_scale" in options:
        pool = "mean" if options["use_mean_pooling"] else "token"
        recipe = Recipe(pool=pool, head_init_scale=options["init_scale"])
        return build_classifier(model_of(options, classes=options["num_classes"]), recipe)
    model = model_of(options, trunk="vit", classes=options["num_classes"], distilled="dist_token" in names)
    return build_classifier(model, Recipe())


class Pair(NamedTuple):
    """A parameter of ours, and what was recorded of the authors'."""

    name: str
    ours: torch.Tensor
    recorded: dict


def pairs(case):
    """All parameters of a case. One of ours without a counterpart, or the other way round, is an error."""
    recorded = read(case)
    torch.manual_seed(0)
    parameters = network(recorded["options"], recorded["parameters"]).named_parameters()
    values = {name.removeprefix("backbone.").removeprefix("head."): value.detach() for name, value in parameters}
    assert values.keys() == recorded["parameters"].keys()
    return [Pair(name, value, recorded["parameters"][name]) for name, value in values.items()]


def test_every_parameter_starts_with_the_recorded_spread_mean_and_bounds(case):
    compared = 0
    for name, ours, recorded in pairs(case):
        (low, high), std, count = recorded["std_over_seeds_min_max"], recorded["std"], recorded["numel"]
        assert ours.numel() == count, name
        spread = pytest.approx(std, abs=high - low + 5 * std / math.sqrt(2 * count) + 1e-7)
        assert ours.std(unbiased=False).item() == spread, name
        assert ours.mean().item() == pytest.approx(recorded["mean"], abs=8 * std / math.sqrt(count) + 1e-7), name
        if std < 1e-7:  # a constant: zero, one, or the initial layer scale
            assert ours.abs().max().item() == pytest.approx(recorded["abs_max"], rel=1e-6), name
        elif recorded["excess_kurtosis"] < -0.5:  # uniform, or a normal cut off at one deviation
            assert ours.abs().max().item() <= recorded["abs_max"] * 1.02, name
            compared += 1
        if count > MANY:
            assert kurtosis(ours) == pytest.approx(shape(recorded["excess_kurtosis"]), abs=0.2), name
    assert compared


def shape(recorded):
    """A recorded kurtosis, or a normal distribution's where single draws have stretched it.

    The inverse error function of float32 gives infinity now and then, which the authors' bounds turn into -2 or 2.
    """
    return recorded if recorded < -0.5 else 0.0


def kurtosis(values):
    """Excess kurtosis: 0 for a normal distribution, -1.2 for a uniform one."""
    values = values.flatten()[:MANY].double()
    centred = values - values.mean()
    return float((centred**4).mean() / (centred**2).mean().clamp(min=1e-30) ** 2 - 3) if centred.any() else 0.0
