"""The trunk of BEiT's segmentation: outputs of four blocks as a pyramid, in evaluation and in training."""

import pytest
import torch
from recorded import arrays, model_of, near, read, rounded, without_indices

from bench.methods.segmentation import Segment
from bench.models.backbone import build
from bench.models.upernet import UperNet

GOLDEN = "g11_finetune_and_segmentation"
NORM = "fpn1.1"  # the one norm of the pyramid


def is_case(folder):
    """A segmentation trunk; classifiers are another module's."""
    return folder.is_dir() and "out_indices" in read(folder / "config.json")["model"]


@pytest.fixture
def config(case):
    return read(case / "config.json")


def named(name):
    return f"decoder.{name}" if name.startswith("fpn") else f"backbone.{name}"


@pytest.fixture
def ours(case, config):
    """Our segmentation network with the recorded trunk and pyramid; the heads that read it stay as they start."""
    model = model_of(config["model"])
    shape = {"size": model.image_size, "patch_size": model.patch_size, "depth": model.depth}
    network = Segment(build(model, norm=False), UperNet(model.width, 2, **shape), ignore_label=255)
    network.decoder.layers = tuple(config["model"]["out_indices"])  # where a study would have a depth's own
    state = {named(name): value for name, value in without_indices(arrays(case / "params.safetensors")).items()}
    heads = {name: value for name, value in network.state_dict().items() if "_head." in name}
    network.load_trainable_state(state | heads)
    return network.eval()


@pytest.fixture
def images(case):
    return arrays(case / "inputs.safetensors")["images"]


def pyramid(network, images):
    layers = network.backbone(images, layers=network.decoder.layers).layers
    return network.decoder.pyramid([network.backbone.patches(tokens) for tokens in layers])


@torch.no_grad()
def test_the_four_levels_are_the_recorded_feature_maps(case, config, ours, images):
    path, levels = case / "outputs.safetensors", pyramid(ours, images)
    names = [f"feature_{level}" for level in range(len(levels))]
    assert set(names) == {name for name in arrays(path) if name.startswith("feature_")}
    assert [list(level.shape) for level in levels] == config["feature_shapes"]
    for name, level in zip(names, levels, strict=True):
        near(level, path, name, "pyramid")


@torch.no_grad()
def test_in_double_precision_nothing_is_left(case, ours, images):
    levels = pyramid(ours.double(), images.double())
    for name, expected in arrays(case / "outputs_float64.safetensors").items():
        rounded(levels[int(name.removeprefix("feature_"))], expected, name)


@torch.no_grad()
def test_in_training_the_statistics_of_the_batch_are_used_and_remembered(case, config, ours, images):
    path, norm = case / "outputs.safetensors", ours.decoder.get_submodule(NORM)
    assert (norm.eps, norm.momentum) == (config["batch_norm_eps"], config["batch_norm_momentum"])
    near(pyramid(ours.train(), images)[0][:1], path, "train_mode_feature_0", "pyramid")
    for statistic in ("running_mean", "running_var"):
        near(getattr(norm, statistic), path, f"train_mode_{NORM}.{statistic}", "outputs")
