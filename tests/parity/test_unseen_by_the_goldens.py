"""What the recorded values cannot see: a sum in place of the mean over target layers, and a bias on the keys.

A last normalisation removes the factor between sum and mean, and the softmax what is constant along a row.
"""

import pytest
import torch
import torch.nn.functional as F
from recorded import training
from safetensors.torch import load_file, save_file

from bench.config.schema import Model, Recipe
from bench.methods.classification import Classify, build_classifier
from bench.methods.data2vec import Decay, PredictTeacher
from bench.models.backbone import build
from bench.models.transfer import transfer
from bench.training.optim import parameter_groups

SIZE = {"width": 24, "depth": 3, "heads": 3, "image_size": 16, "patch_size": 4}
POSITIONS = ("absolute", "relative", "shared-relative")


def model(position="shared-relative", **more):
    return Model(trunk="beit", position=position, layer_scale=0.1, **SIZE, **more)


def data2vec(layers, *, norm_targets, position="shared-relative"):
    torch.manual_seed(0)
    backbone = build(model(position), mask_token=True)
    return PredictTeacher(backbone, layers=layers, beta=2.0, norm_targets=norm_targets, decay=Decay(0.9998))


@pytest.fixture
def batch():
    torch.manual_seed(1)
    hidden = torch.rand(2, 16) < 0.5
    return {"image": torch.randn(2, 3, 16, 16), "hidden": hidden, "position": torch.arange(2)}


def normalised_layers(objective, batch):
    """Each target layer of the teacher, normalised, at the hidden patches: (K, M, D)."""
    layers = objective.teacher(batch["image"], layers=objective.layers).layers
    patches = [objective.teacher.patches(layer)[batch["hidden"]] for layer in layers]
    return torch.stack([F.layer_norm(layer, layer.shape[-1:]) for layer in patches])


@torch.no_grad()
@pytest.mark.parametrize("layers", [(2,), (1, 2), (0, 1, 2)])
def test_targets_are_the_mean_of_the_layers_not_their_sum(layers, batch):
    objective = data2vec(layers, norm_targets=False)
    each = normalised_layers(objective, batch)
    torch.testing.assert_close(objective.targets(batch), each.mean(dim=0))
    if len(layers) > 1:
        assert not torch.allclose(objective.targets(batch), each.sum(dim=0), atol=1e-2)


@torch.no_grad()
def test_the_mean_is_normalised_once_more_not_the_sum(batch):
    """The two differ by the epsilon of the normalisation, which weighs more on the smaller mean.

    In double precision that is visible where the layers nearly cancel out; here they are scaled down to show it.
    """
    objective = data2vec((0, 1, 2), norm_targets=True)
    each = normalised_layers(objective, batch).double()
    mean, total = (F.layer_norm(layers, layers.shape[-1:]) for layers in (each.mean(dim=0), each.sum(dim=0)))
    targets = objective.targets(batch).double()
    assert (mean - total).abs().max() > 4e-6
    assert (targets - mean).abs().max() < (targets - total).abs().max() / 3


def trained_once(objective, batch):
    """The update that has taken one step of our loop."""
    update = training(objective, model(), Recipe(lr=0.1, precision="fp32", epochs=1), steps_per_epoch=2)
    update(0, [batch])
    return update


def keys_biases(module):
    """Everything in a module that is called a bias of the keys."""
    every = [*module.named_parameters(), *module.named_buffers()]
    return {name: value for name, value in every if "k_bias" in name}


def check_no_key_bias(objective, update):
    """Not trained, not saved, not in the optimiser, zero; and the bias of queries and values stands apart."""
    assert not [name for name, _ in objective.named_parameters() if "k_bias" in name or name.endswith("qkv.bias")]
    assert not [name for name in objective.state_dict() if "k_bias" in name or name.endswith("qkv.bias")]
    assert not [name for group in update.optimizer.param_groups for name in group["names"] if "k_bias" in name]
    for value in keys_biases(objective).values():
        assert not value.requires_grad and value.grad is None and not value.any()
    ids = {id(parameter) for group in update.optimizer.param_groups for parameter in group["params"]}
    assert not ids & {id(value) for value in keys_biases(objective).values()}
    for block in objective.backbone.blocks:
        for bias in (block.attn.q_bias, block.attn.v_bias):
            assert bias.numel() == SIZE["width"] and id(bias) in ids and bias.any()


@pytest.mark.parametrize("position", POSITIONS)
def test_pretraining_trains_no_bias_of_the_keys(position, batch):
    objective = data2vec((1, 2), norm_targets=True, position=position)
    check_no_key_bias(objective, trained_once(objective, batch))
    assert not any(value.any() for value in keys_biases(objective.teacher).values())


@pytest.mark.parametrize("position", POSITIONS)
def test_fine_tuning_from_a_checkpoint_trains_no_bias_of_the_keys(position, batch, tmp_path):
    """As a stage starts: from the file that another one left, through the hand-over, into the optimiser."""
    before = data2vec((1, 2), norm_targets=True, position=position)
    trained_once(before, batch)
    weights = {name: value.contiguous() for name, value in before.backbone.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    tuned = build_classifier(
        model("absolute" if position == "absolute" else "relative", classes=3), Recipe(pool="mean")
    )
    transfer(load_file(tmp_path / "model.safetensors"), tuned.backbone)
    labelled = batch | {"label": torch.tensor([0, 2])}
    check_no_key_bias(tuned, trained_once(tuned, labelled))


def test_a_resumed_objective_trains_no_bias_of_the_keys(batch):
    before, after = (data2vec((1, 2), norm_targets=True) for _ in range(2))
    trained_once(before, batch)
    after.load_trainable_state(before.trainable_state())
    check_no_key_bias(after, trained_once(after, batch))


def test_the_check_would_see_a_trained_bias_of_the_keys(batch):
    """One that is a parameter, as it would be with one bias for queries, keys and values."""
    tuned = build_classifier(model("relative", classes=3), Recipe(pool="mean"))
    for block in tuned.backbone.blocks:
        zeros = torch.zeros_like(block.attn.q_bias)
        del block.attn.k_bias
        block.attn.k_bias = torch.nn.Parameter(zeros)
    update = trained_once(tuned, batch | {"label": torch.tensor([0, 2])})
    with pytest.raises(AssertionError):
        check_no_key_bias(tuned, update)


def test_a_vision_transformer_of_deit_has_the_joint_bias_of_its_authors():
    """There the keys do have one, within `qkv.bias`."""
    ours = build_classifier(Model(trunk="vit", classes=3, **SIZE), Recipe())
    assert isinstance(ours, Classify)
    joint = [name for group in parameter_groups(ours, Recipe()) for name in group["names"] if name.endswith("qkv.bias")]
    assert len(joint) == SIZE["depth"]
