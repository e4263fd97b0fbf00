"""Networks with random parameters, ours and of other libraries, for the tests of checkpoint conversion."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.checkpoints import conversion
from bench.config.schema import Model, Recipe
from bench.methods.classification import build_classifier
from bench.methods.masked_images import Recover
from bench.methods.objective import Objective
from bench.methods.segmentation import build_segmenter
from bench.models.backbone import build

CLASSES, VOCAB_SIZE = 7, 19
SMALL: dict[str, Any] = {"width": 32, "depth": 4, "heads": 4, "image_size": 32, "patch_size": 8, "classes": CLASSES}
TOLERANCE: dict[str, float] = {"atol": 1e-5, "rtol": 0}


def tolerance(logits: Tensor) -> dict[str, float]:
    """1e-5 for logits up to 10, in proportion for larger ones: random decoders give hundreds."""
    return {"atol": 1e-5 * max(1.0, float(logits.abs().max()) / 10), "rtol": 0}


def randomised(network: nn.Module, seed: int = 0) -> Any:
    """Make every floating tensor random, buffers too: nothing is 0, 1 or constant. In evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            draw = torch.randn(value.shape, generator=generator)
            value.copy_(0.5 + draw.abs() if name.endswith("running_var") else 0.2 * draw + 1.0 * _is_norm(name))
    return network.eval()


def _is_norm(name: str) -> bool:
    return "norm" in name and name.endswith(".weight")


def images_for(model: Model) -> Tensor:
    return torch.randn(2, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(1))


def hidden(model: Model) -> Tensor:
    """Which patches are hidden: about half of them."""
    return torch.rand(2, model.grid**2, generator=torch.Generator().manual_seed(2)) < 0.5


def network(model: Model, pool: str = "mean", purpose: str = "classify", *, representation: bool = False) -> Objective:
    """One of our networks, with random parameters."""
    if purpose == "segment":
        return randomised(build_segmenter(model, Recipe(), ignore_label=255))
    if purpose == "classify":
        return randomised(build_classifier(model, Recipe(pool=pool), representation=representation))
    return randomised(Recover(build(model, mask_token=True), VOCAB_SIZE))


@torch.no_grad()
def outputs_of(objective: Objective, model: Model) -> Tensor:
    """Logits of one of our networks for `images_for`, or its predictions of their hidden patches."""
    if isinstance(objective, Recover):
        return objective.predictions({"image": images_for(model), "hidden": hidden(model)})
    return objective.predict({"image": images_for(model)})["logits"]


def converted_outputs(checkpoint: conversion.ConvertedCheckpoint) -> Tensor:
    """`outputs_of` the network that a checkpoint became."""
    return outputs_of(conversion.build_objective(checkpoint), checkpoint.model)


def assert_same_state(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    assert not [name for name in state if not torch.equal(state[name], expected[name])]


def assert_whole(checkpoint: conversion.ConvertedCheckpoint, expected: Objective) -> None:
    """Every tensor was read, under our names, none is left over, and the outputs are the same."""
    assert not checkpoint.report.missing + checkpoint.report.unexpected + checkpoint.report.resized
    assert_same_state(checkpoint.state, expected.trainable_state())
    torch.testing.assert_close(converted_outputs(checkpoint), outputs_of(expected, checkpoint.model), **TOLERANCE)
