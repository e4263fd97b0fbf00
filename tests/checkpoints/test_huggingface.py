"""Folders of transformers: ours as they read them, theirs as we read them, with random parameters."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from foreign import (
    SMALL,
    TOLERANCE,
    VOCAB_SIZE,
    assert_whole,
    converted_outputs,
    hidden,
    images_for,
    network,
    outputs_of,
    randomised,
    tolerance,
)
from safetensors.torch import load_file, save_file

from bench.checkpoints import conversion
from bench.config.schema import Model
from bench.errors import BenchError

BEIT = [
    ("beit", "absolute", 0.0, "mean"),
    ("beit", "absolute", 0.1, "token"),
    ("beit", "relative", 0.0, "mean"),
    ("beit", "relative", 0.1, "token"),
    ("beit", "shared-relative", 0.0, "token"),
    ("beit", "shared-relative", 0.1, "mean"),
    ("data2vec", "relative", 0.1, "mean"),
    ("data2vec", "shared-relative", 0.1, "mean"),
    ("data2vec", "absolute", 0.0, "token"),
]
ADE = {**SMALL, "trunk": "beit", "position": "relative", "image_size": 64, "patch_size": 16, "decoder": "upernet"}
BASE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
SIDES = {"image_size": 32, "patch_size": 8, "num_labels": 5}
RELATIVE = {"use_relative_position_bias": True, "layer_scale_init_value": 0.1}
SEGMENTS = {**BASE, **RELATIVE, "num_hidden_layers": 12, "image_size": 32, "patch_size": 16, "num_labels": 5}


def loaded(kind, folder):
    """What transformers makes of a folder; nothing may be missing, over, or of another shape."""
    network, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return network.eval()


def logits_of(network, model, **inputs):
    with torch.no_grad():
        return network(images_for(model), **inputs).logits


def there_and_back(ours, model, pool, folder, name, **options):
    """Ours written, loaded by transformers under the name of its class, compared, saved by it and read again."""
    conversion.write(ours, model, pool, "hf", folder / "there", **options)
    theirs = loaded(hf.AutoModelForImageClassification, folder / "there")
    assert type(theirs).__name__ == name
    torch.testing.assert_close(logits_of(theirs, model), outputs_of(ours, model), **TOLERANCE)
    theirs.save_pretrained(folder / "back")
    return conversion.read(folder / "back")


@pytest.mark.parametrize(("method", "position", "scale", "pool"), BEIT)
def test_a_classifier_of_ours_answers_the_same_in_transformers_and_comes_back(tmp_path, method, position, scale, pool):
    model = Model(**SMALL, trunk="beit", position=position, layer_scale=scale)
    ours, name = network(model, pool), {"beit": "Beit", "data2vec": "Data2VecVision"}[method]
    back = there_and_back(ours, model, pool, tmp_path, f"{name}ForImageClassification", method=method)
    assert (back.family, back.purpose, back.pool) == ("transformers", "classify", pool)
    assert back.model.model_copy(update={"size": model.size}) == model
    assert_whole(back, ours)


@pytest.mark.parametrize(
    ("distilled", "name"), [(False, "ViTForImageClassification"), (True, "DeiTForImageClassificationWithTeacher")]
)
def test_vit_and_deit_answer_the_same_in_transformers_and_come_back(tmp_path, distilled, name):
    model = Model(**SMALL, distilled=distilled)
    ours = network(model, "token")
    back = there_and_back(ours, model, "token", tmp_path, name)
    assert back.model.model_copy(update={"size": model.size}) == model
    assert_whole(back, ours)


@pytest.mark.parametrize(("pool", "scale"), [("mean", 0.0), ("token", 0.1)])
def test_a_vit_that_transformers_vit_cannot_be_is_written_as_a_beit(tmp_path, pool, scale):
    model = Model(**SMALL, layer_scale=scale)
    ours = network(model, pool, representation=pool == "mean")  # a layer that mean pooling does not read
    back = there_and_back(ours, model, pool, tmp_path, "BeitForImageClassification")
    converted = conversion.build_objective(back)
    torch.testing.assert_close(outputs_of(converted, model), outputs_of(ours, model), **TOLERANCE)


@pytest.mark.parametrize("position", ["absolute", "relative", "shared-relative"])
def test_masked_modelling_answers_the_same_in_transformers_and_comes_back(tmp_path, position):
    model = Model(**SMALL | {"classes": 0}, trunk="beit", position=position, layer_scale=0.1)
    ours = network(model, purpose="pretrain")
    conversion.write(ours, model, "mean", "hf", tmp_path / "there")
    theirs = loaded(hf.BeitForMaskedImageModeling, tmp_path / "there")
    assert theirs.config.vocab_size == VOCAB_SIZE
    logits = logits_of(theirs, model, bool_masked_pos=hidden(model))[hidden(model)]
    torch.testing.assert_close(logits, outputs_of(ours, model), **TOLERANCE)
    theirs.save_pretrained(tmp_path / "back")
    back = conversion.read(tmp_path / "back")
    assert back.purpose == "pretrain"
    assert_whole(back, ours)


def test_data2vec_is_written_as_a_trunk_without_head_whose_features_are_ours(tmp_path):
    model = Model(**SMALL | {"classes": 0}, trunk="beit", position="shared-relative", layer_scale=0.1)
    ours = network(model, purpose="pretrain")
    conversion.write(ours, model, "mean", "hf", tmp_path, method="data2vec")
    theirs = loaded(hf.AutoModel, tmp_path)
    assert type(theirs).__name__ == "Data2VecVisionModel"
    with torch.no_grad():
        logits = theirs(images_for(model), bool_masked_pos=hidden(model)).last_hidden_state
        expected = ours.backbone.norm(ours.backbone(images_for(model), hidden(model)).tokens)
    torch.testing.assert_close(logits, expected, **TOLERANCE)
    assert conversion.read(tmp_path).report.missing == ("lm_head.weight", "lm_head.bias")


@pytest.mark.parametrize("trunk", ["beit", "vit"])
def test_segmentation_answers_the_same_in_transformers_and_comes_back(tmp_path, trunk):
    model = Model(**ADE | {"trunk": trunk, "position": "relative" if trunk == "beit" else "absolute"}, layer_scale=0.1)
    ours = network(model, purpose="segment")
    conversion.write(ours, model, "mean", "hf", tmp_path / "there")
    theirs = loaded(hf.AutoModelForSemanticSegmentation, tmp_path / "there")
    logits = F.interpolate(logits_of(theirs, model), size=64, mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, outputs_of(ours, model), **tolerance(logits))
    theirs.save_pretrained(tmp_path / "back")
    back = conversion.read(tmp_path / "back")
    assert (back.purpose, back.model.decoder) == ("segment", "upernet")
    if trunk == "beit":
        assert_whole(back, ours)


THEIRS = {
    "ViT": (hf.ViTForImageClassification, hf.ViTConfig, {}),
    "DeiT": (hf.DeiTForImageClassificationWithTeacher, hf.DeiTConfig, {}),
    "BEiT": (hf.BeitForImageClassification, hf.BeitConfig, RELATIVE),
    "BEiT by class token": (hf.BeitForImageClassification, hf.BeitConfig, RELATIVE | {"use_mean_pooling": False}),
    "Data2VecVision": (hf.Data2VecVisionForImageClassification, hf.Data2VecVisionConfig, RELATIVE),
}


@pytest.mark.parametrize("name", THEIRS)
def test_a_classifier_of_transformers_answers_the_same_here(tmp_path, name, eps=1e-3):
    network, config, options = THEIRS[name]
    theirs = randomised(network(config(**BASE, **SIDES, **options, layer_norm_eps=eps)))
    theirs.save_pretrained(tmp_path)
    checkpoint = conversion.read(tmp_path)
    assert (checkpoint.model.norm_eps, checkpoint.model.mlp_ratio, checkpoint.model.classes) == (eps, 2.0, 5)
    torch.testing.assert_close(converted_outputs(checkpoint), logits_of(theirs, checkpoint.model), **TOLERANCE)


def test_starting_weights_of_transformers_answer_the_same_here_although_they_are_small(tmp_path):
    torch.manual_seed(0)
    theirs = hf.BeitForImageClassification(hf.BeitConfig(**BASE, **SIDES, **RELATIVE, use_mean_pooling=False)).eval()
    theirs.save_pretrained(tmp_path)
    checkpoint = conversion.read(tmp_path)
    torch.testing.assert_close(converted_outputs(checkpoint), logits_of(theirs, checkpoint.model), **TOLERANCE)


def test_segmentation_of_beit_answers_the_same_here_when_its_pyramid_reads_our_blocks(tmp_path):
    theirs = randomised(
        hf.Data2VecVisionForSemanticSegmentation(hf.Data2VecVisionConfig(**SEGMENTS, out_indices=[5, 7, 9, 13]))
    )
    theirs.save_pretrained(tmp_path)
    checkpoint = conversion.read(tmp_path)
    expected = F.interpolate(logits_of(theirs, checkpoint.model), size=32, mode="bilinear", align_corners=False)
    torch.testing.assert_close(converted_outputs(checkpoint), expected, **tolerance(expected))


def beit_for_segmentation(folder, out_indices):
    config = hf.BeitConfig(**SEGMENTS, out_indices=out_indices)
    randomised(hf.BeitForSemanticSegmentation(config)).save_pretrained(folder)
    return folder


def test_a_published_config_is_taken_at_the_authors_word_and_the_difference_is_said(tmp_path, caplog):
    checkpoint = conversion.read(beit_for_segmentation(tmp_path, [3, 5, 7, 11]))
    assert "transformers reads [1, 3, 5, 9]" in caplog.text
    assert conversion.build_objective(checkpoint).decoder.layers == (3, 5, 7, 11)


def test_another_pyramid_is_refused_with_the_blocks_that_both_read(tmp_path):
    with pytest.raises(BenchError, match=r"reads blocks \[2, 4, 6, 10\].*our UPerNet \[3, 5, 7, 11\]"):
        conversion.read(beit_for_segmentation(tmp_path, [4, 6, 8, 12]))


def test_a_trunk_alone_is_read_for_going_on_and_says_what_it_lacks(tmp_path):
    options = {**BASE, **SIDES, "use_shared_relative_position_bias": True, "use_mean_pooling": False}
    theirs = randomised(hf.Data2VecVisionModel(hf.Data2VecVisionConfig(**options)))
    theirs.save_pretrained(tmp_path)
    checkpoint = conversion.read(tmp_path)
    assert (checkpoint.purpose, checkpoint.model.position) == ("pretrain", "shared-relative")
    assert checkpoint.report.missing == ("backbone.mask_token", "lm_head.weight", "lm_head.bias")
    with pytest.raises(BenchError, match=r"lacks backbone.mask_token, lm_head.bias, lm_head.weight.*start_from"):
        conversion.build_objective(checkpoint)


@pytest.mark.parametrize(
    ("flag", "where"),
    [
        ("use_shared_relative_position_bias", "beit.encoder."),
        ("use_relative_position_bias", "beit.encoder.layer.0.attention.attention."),
    ],
)
def test_the_index_buffers_of_old_files_stay_behind(tmp_path, flag, where):
    theirs = randomised(
        hf.BeitForMaskedImageModeling(hf.BeitConfig(**BASE, **SIDES, **{flag: True}, use_mask_token=True))
    )
    theirs.save_pretrained(tmp_path)
    path, index = tmp_path / "model.safetensors", f"{where}relative_position_bias.relative_position_index"
    save_file(load_file(path) | {index: torch.zeros(17, 17, dtype=torch.int64)}, path, metadata={"format": "pt"})
    checkpoint = conversion.read(tmp_path)
    assert checkpoint.report.left == (index,)
    conversion.build_objective(checkpoint)


def test_two_final_norms_are_refused(tmp_path):
    options = {**BASE, **SIDES, **RELATIVE, "use_mask_token": True, "use_mean_pooling": False, "vocab_size": VOCAB_SIZE}
    randomised(hf.BeitForMaskedImageModeling(hf.BeitConfig(**options))).save_pretrained(tmp_path)
    with pytest.raises(BenchError, match=r"has, unexpectedly, .*layernorm\.bias"):
        conversion.read(tmp_path)


def test_the_pooler_of_a_vit_alone_stays_behind(tmp_path):
    randomised(hf.ViTModel(hf.ViTConfig(**BASE, **SIDES))).save_pretrained(tmp_path)
    checkpoint = conversion.read(tmp_path)
    assert checkpoint.report.left == ("head.representation.0.bias", "head.representation.0.weight")
    assert checkpoint.purpose == "pretrain"
    assert not checkpoint.report.unexpected


def test_the_decoder_of_mae_stays_behind(tmp_path):
    small = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    theirs = randomised(hf.ViTMAEForPreTraining(hf.ViTMAEConfig(**BASE, **SIDES, **small)))
    theirs.save_pretrained(tmp_path)
    checkpoint = conversion.read(tmp_path)
    assert all(name.startswith("decoder.") for name in checkpoint.report.left)
    assert torch.equal(checkpoint.state["backbone.pos_embed"], theirs.vit.embeddings.position_embeddings)


def saved(folder, **changes):
    """A small BEiT classifier of transformers, with its config.json changed."""
    folder.mkdir(exist_ok=True)
    hf.BeitForImageClassification(hf.BeitConfig(**BASE, **SIDES, **RELATIVE)).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act = 'relu' instead of 'gelu'"),
        ({"model_type": "swin"}, "no architecture in transformers that bench reads 'swin'"),
        ({"image_size": [32, 64]}, "square"),
        ({"use_absolute_position_embeddings": True}, "has 2 of use_absolute_position_embeddings"),
        ({"use_relative_position_bias": False}, "has none of"),
        ({"hidden_size": 64}, "of other shapes than its network"),
        ({"num_hidden_layers": 4}, r"lacks backbone\.blocks\.3"),
        ({"num_hidden_layers": 2}, r"has, unexpectedly, backbone\.blocks\.2.*--partial"),
    ],
)
def test_a_config_that_no_network_of_ours_can_be_is_refused(tmp_path, changes, message):
    with pytest.raises(BenchError, match=message):
        conversion.read(saved(tmp_path, **changes))


def test_partial_leaves_out_what_has_no_place_and_says_so(tmp_path):
    checkpoint = conversion.read(saved(tmp_path, num_hidden_layers=2), partial=True)
    assert checkpoint.report.unexpected
    assert all(name.startswith("backbone.blocks.2.") for name in checkpoint.report.unexpected)
    assert not [name for name in checkpoint.state if name.startswith("backbone.blocks.2.")]


def test_positions_are_resized_to_the_image_size_of_the_config(tmp_path):
    checkpoint = conversion.read(saved(tmp_path, image_size=48))
    assert checkpoint.report.resized == tuple(
        f"backbone.blocks.{n}.attn.relative_position_bias_table" for n in range(3)
    )
    logits = conversion.build_objective(checkpoint).predict({"image": torch.randn(1, 3, 48, 48)})["logits"]
    assert logits.shape == (1, 5)


def test_labels_and_preprocessing_are_read_as_the_folder_has_them(tmp_path):
    names = {str(number): name for number, name in enumerate(["cat", "dog", "owl", "ant", "bee"])}
    saved(tmp_path, id2label=names)
    crop = {"do_center_crop": True, "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
    settings = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2], "resample": 2, **crop}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    checkpoint = conversion.read(tmp_path)
    assert checkpoint.labels == ("cat", "dog", "owl", "ant", "bee")
    assert checkpoint.preprocessing == {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "resolution": 224,
        "crop_ratio": 0.875,
        "interpolation": "bilinear",
    }


def test_labels_are_written_into_the_config(tmp_path):
    model, labels = Model(**SMALL), tuple("abcdefg")
    conversion.write(network(model, "token"), model, "token", "hf", tmp_path, labels=labels)
    config = hf.AutoConfig.from_pretrained(tmp_path)
    assert config.id2label == dict(enumerate(labels))
    assert (config.label2id["g"], config.layer_norm_eps) == (6, 1e-6)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({}, {"representation": True}, "tanh layer.*vit:strong"),
        ({"distilled": True}, {"pool": "mean"}, "DeiT has neither mean pooling"),
        (ADE | {"decoder": "linear"}, {"purpose": "segment"}, "decoder 'linear'.*--to authors"),
        (ADE | {"patch_size": 8}, {"purpose": "segment"}, "patches of 8 pixels instead of 16"),
    ],
)
def test_a_network_that_transformers_has_not_is_refused_with_what_can_be_done(tmp_path, values, options, message):
    model, options = Model(**SMALL | values), {"pool": "token", **options}
    with pytest.raises(BenchError, match=message):
        conversion.write(network(model, **options), model, options["pool"], "hf", tmp_path)
    assert not [*tmp_path.iterdir()]
