"""Predictions through overlapping windows equal those of mmsegmentation (golden g09)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bench.sliding import slide


@pytest.fixture(scope="module")
def folder(golden: Path) -> Path:
    return golden / "g09_segmentation"


def network(inputs: dict[str, torch.Tensor]) -> nn.Module:
    weights = {name.removeprefix("net."): value for name, value in inputs.items() if name.startswith("net.")}
    (width, *_), (classes, *_) = weights["conv1.weight"].shape, weights["conv2.weight"].shape
    net = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, classes, 3, padding=1))
    net.load_state_dict(
        {f"{0 if name.startswith('conv1') else 2}.{name[6:]}": value for name, value in weights.items()}
    )
    return net


@torch.no_grad()
def test_logits_equal_the_published_code(folder):
    cases = json.loads((folder / "slide.json").read_text())["cases"]
    inputs, expected = load_file(folder / "slide_inputs.safetensors"), load_file(folder / "slide_outputs.safetensors")
    net = network(inputs)
    for name, case in cases.items():
        (window, _), (stride, _) = case["crop_size"], case["stride"]
        logits = slide(net, inputs[f"{name}.image"], window=window, stride=stride)
        if case["rescale_to"]:
            logits = nn.functional.interpolate(logits, case["rescale_to"], mode="bilinear", align_corners=False)
        torch.testing.assert_close(logits, expected[f"{name}.logits"], rtol=0, atol=2e-5)
        assert torch.equal(logits.argmax(1), expected[f"{name}.argmax"].long())
