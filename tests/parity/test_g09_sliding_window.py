"""Predictions through overlapping windows equal those of mmsegmentation."""

import pytest
import torch
from recorded import arrays, near, read
from torch import nn

from bench.evaluation.sliding_window import decide, interpolate_rows, slide

GOLDEN = "g09_segmentation"
MARGIN = 1e-4  # between the best class and the second, above which the recorded answer is beyond doubt


@pytest.fixture
def path(golden):
    return golden / GOLDEN / "slide_outputs.safetensors"


def network(inputs):
    weights = {name.removeprefix("net."): value for name, value in inputs.items() if name.startswith("net.")}
    (width, *_), (classes, *_) = weights["conv1.weight"].shape, weights["conv2.weight"].shape
    net = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, classes, 3, padding=1))
    names = {"conv1": "0", "conv2": "2"}
    net.load_state_dict({f"{names[name[:5]]}{name[5:]}": value for name, value in weights.items()})
    return net


@torch.no_grad()
def predictions(golden):
    """Our logits (B, K, H, W) and answers (B, H, W) for every recorded picture, by the name of its case."""
    inputs = arrays(golden / GOLDEN / "slide_inputs.safetensors")
    net = network(inputs)
    for name, case in read(golden / GOLDEN / "slide.json")["cases"].items():
        (window, across), (stride, along) = case["crop_size"], case["stride"]
        assert (window, stride) == (across, along), "our windows are square"
        logits = slide(net, inputs[f"{name}.image"], window=window, stride=stride)
        size = tuple(case["rescale_to"] or logits.shape[-2:])
        rescaled = torch.stack([interpolate_rows(scores, size, range(size[0])) for scores in logits])
        yield name, case, rescaled, torch.stack([decide([(scores, 1)], size) for scores in logits])


def test_logits_are_the_recorded_ones(golden, path):
    seen = set()
    for name, case, logits, _ in predictions(golden):
        near(logits, path, f"{name}.logits", "rescaled windows" if case["rescale_to"] else "windows")
        seen.add(f"{name}.logits")
    assert seen == {name for name in arrays(path) if name.endswith(".logits")} != set()


def test_answers_are_the_recorded_ones_where_they_are_beyond_doubt(golden, path):
    expected = arrays(path)
    for name, _, _, answers in predictions(golden):
        best, second = expected[f"{name}.logits"].topk(2, dim=1).values.unbind(1)
        sure = best - second > MARGIN
        assert sure.float().mean() > 0.99, name
        assert torch.equal(answers[sure], expected[f"{name}.argmax"][sure].long()), name


def test_there_are_pictures_smaller_than_a_window_and_rescaled_ones(golden):
    cases = read(golden / GOLDEN / "slide.json")["cases"].values()
    assert any(case["rescale_to"] for case in cases)
    assert any(min(case["image"][2:]) < case["crop_size"][0] for case in cases)
