"""timm's networks: theirs as we read them, ours as timm builds them, with random parameters."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from foreign import (
    SMALL,
    TOLERANCE,
    assert_same_state,
    assert_whole,
    converted_outputs,
    images_for,
    network,
    outputs_of,
    randomised,
)
from safetensors.torch import load_file, save_file

from bench.checkpoints import conversion
from bench.config.schema import Model
from bench.errors import BenchError

SIDES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
NO_POSITIONS = {"use_abs_pos_emb": False, "use_rel_pos_bias": False}
THEIRS = {
    "Beit, absolute": ("beit_base_patch16_224", NO_POSITIONS | {"use_abs_pos_emb": True}),
    "Beit, relative": ("beit_base_patch16_224", {}),
    "Beit, shared": ("beit_base_patch16_224", NO_POSITIONS | {"use_shared_rel_pos_bias": True}),
    "Beit, by class token": ("beit_base_patch16_224", {"global_pool": "token"}),
    "ViT": ("vit_base_patch16_224", {}),
    "ViT, by mean": ("vit_base_patch16_224", {"global_pool": "avg"}),
    "ViT with LayerScale": ("vit_base_patch16_224", {"init_values": 0.1}),
    "DeiT, distilled": ("deit_base_distilled_patch16_224", {}),
}
OURS = {
    "ViT": (Model(**SMALL), "token"),
    "ViT, by mean": (Model(**SMALL, layer_scale=0.1), "mean"),
    "DeiT, distilled": (Model(**SMALL, distilled=True), "token"),
    "BEiT, absolute": (Model(**SMALL, trunk="beit"), "mean"),
    "BEiT, relative": (Model(**SMALL, trunk="beit", position="relative", layer_scale=0.1), "mean"),
    "BEiT, shared": (Model(**SMALL, trunk="beit", position="shared-relative"), "token"),
}
SETTINGS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "crop_ratio": 0.9, "interpolation": "bicubic"}


def saved(folder, name="vit_base_patch16_224", **arguments):
    """A random network of timm in a folder, as timm's own save_for_hf writes it."""
    arguments = {**SIDES, **arguments}
    theirs = randomised(timm.create_model(name, num_classes=5, **arguments))
    timm.models.save_for_hf(theirs, folder, model_args=arguments, safe_serialization=True)
    return theirs


@torch.no_grad()
def logits_of(theirs, model):
    return theirs(images_for(model))


@pytest.mark.parametrize("name", THEIRS)
def test_a_network_of_timm_answers_the_same_here_and_goes_back_unchanged(tmp_path, name):
    architecture, options = THEIRS[name]
    theirs = saved(tmp_path / "there", architecture, **options)
    checkpoint = conversion.read(tmp_path / "there")
    assert (checkpoint.family, checkpoint.purpose, checkpoint.report.unexpected) == ("timm", "classify", ())
    torch.testing.assert_close(converted_outputs(checkpoint), logits_of(theirs, checkpoint.model), **TOLERANCE)
    conversion.write(checkpoint.state, checkpoint.model, checkpoint.pool, "timm", tmp_path / "back")
    assert_same_state(load_file(tmp_path / "back/model.safetensors"), theirs.state_dict())


@pytest.mark.parametrize("name", OURS)
def test_a_network_of_ours_answers_the_same_in_timm_and_comes_back(tmp_path, name):
    model, pool = OURS[name]
    ours = network(model, pool)
    conversion.write(ours, model, pool, "timm", tmp_path, labels=tuple("abcdefg"), preprocessing=SETTINGS)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(logits_of(theirs, model), outputs_of(ours, model), **TOLERANCE)
    back = conversion.read(tmp_path)
    assert back.model.model_copy(update={"size": model.size}) == model
    assert (back.labels, back.preprocessing) == (tuple("abcdefg"), SETTINGS | {"resolution": 32})
    assert_whole(back, ours)


def test_what_was_pretrained_goes_on_in_timm_without_its_head(tmp_path):
    model = Model(**SMALL | {"classes": 0}, trunk="beit", position="relative")
    ours = network(model, purpose="pretrain")
    conversion.write(ours, model, "mean", "timm", tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        expected = ours.backbone.norm(ours.backbone(images_for(model)).tokens)
        torch.testing.assert_close(theirs.forward_features(images_for(model)), expected, **TOLERANCE)
    assert conversion.read(tmp_path).report.missing == ("backbone.mask_token", "lm_head.weight", "lm_head.bias")


def test_a_convolutional_network_comes_and_goes_as_it_is(tmp_path):
    theirs = randomised(timm.create_model("resnet10t", num_classes=5))
    timm.models.save_for_hf(theirs, tmp_path / "there", safe_serialization=True)
    checkpoint = conversion.read(tmp_path / "there")
    assert (checkpoint.model.trunk, checkpoint.model.classes, checkpoint.purpose) == ("timm:resnet10t", 5, "classify")
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(
        conversion.build_objective(checkpoint).predict({"image": images})["logits"], theirs(images), **TOLERANCE
    )
    conversion.write(checkpoint.state, checkpoint.model, "token", "timm", tmp_path / "back")
    again = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True)
    assert_same_state(again.state_dict(), theirs.state_dict())
    with pytest.raises(BenchError, match="--to timm"):
        conversion.write(checkpoint.state, checkpoint.model, "token", "hf", tmp_path / "other")


def test_a_file_of_timm_needs_no_config(tmp_path):
    theirs = randomised(timm.create_model("beit_base_patch16_224", num_classes=5, **SIDES))
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    checkpoint = conversion.read(tmp_path / "weights.safetensors")
    assert (checkpoint.family, checkpoint.model.heads, checkpoint.model.image_size) == ("timm", 4, 32)
    torch.testing.assert_close(converted_outputs(checkpoint), logits_of(theirs, checkpoint.model), **TOLERANCE)


def test_settings_of_timm_are_read_as_preprocessing(tmp_path):
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    preprocessing = conversion.read(tmp_path).preprocessing
    assert preprocessing["crop_ratio"] == config["pretrained_cfg"]["crop_pct"]
    assert (preprocessing["resolution"], preprocessing["interpolation"]) == (32, "bicubic")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_pool": "avg", "fc_norm": False}, "pools by 'avg', with its norm elsewhere"),
        ({"global_pool": "map"}, "pools by 'map'"),
        ({"no_embed_class": True}, "16 positions are not those of a square and its class token"),
        ({"qk_norm": True}, r"has, unexpectedly, backbone\.blocks\.0\.attn\.k_norm"),
        ({"qkv_bias": False}, r"lacks backbone\.blocks\.0\.attn\.qkv\.bias"),
        ({"reg_tokens": 4}, "positions are not those of a square"),
        ({"act_layer": "gelu_tanh"}, "our networks have the exact GELU"),
    ],
)
def test_a_vit_of_timm_that_is_none_of_ours_is_refused(tmp_path, options, message):
    saved(tmp_path, **options)
    with pytest.raises(BenchError, match=message):
        conversion.read(tmp_path)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({}, {"representation": True}, "tanh layer"),
        ({"distilled": True}, {"pool": "mean"}, "distillation token and mean pooling"),
        ({"norm_eps": 1e-12}, {}, "norm_eps = 1e-12"),
        ({"decoder": "linear"}, {"purpose": "segment"}, "segmentation decoder"),
    ],
)
def test_a_network_that_timm_has_not_is_refused_with_what_can_be_done(tmp_path, values, options, message):
    model, options = Model(**SMALL | values), {"pool": "token", **options}
    with pytest.raises(BenchError, match=f"{message}.*--to authors"):
        conversion.write(network(model, **options), model, options["pool"], "timm", tmp_path)
