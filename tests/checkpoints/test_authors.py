"""Files of the authors: read into our words, giving their recorded answers, and written under their names again."""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from foreign import SMALL, assert_same_state, assert_whole, network, outputs_of
from safetensors.torch import load_file, save_file

from bench.checkpoints import conversion
from bench.checkpoints.formats.safe_open import CONVERT
from bench.config.schema import Model, Recipe
from bench.errors import BenchError
from bench.methods.classification import build_classifier
from bench.methods.linear_probe import build_probe
from bench.models.transfer import submodule_state, transfer

RECORDED = {"atol": 2e-5, "rtol": 0}  # the golden folder's README
SEGMENTS = {**SMALL, "trunk": "beit", "position": "relative", "layer_scale": 0.1, "image_size": 64, "patch_size": 16}


def boxed(folder, state, container="model", **more):
    """A .pth file as the authors' programs save it."""
    path = folder / "checkpoint.pth"
    torch.save({container: state, **more} if container else state, path)
    return path


def heads(folder, config="config.json"):
    return json.loads((folder / config).read_text())["model"]["num_heads"]


def written(checkpoint, folder):
    """What the authors' programs would find in our file."""
    (path,) = conversion.write(checkpoint.state, checkpoint.model, checkpoint.pool, "authors", folder)
    return torch.load(path, weights_only=True)


def read_and_back(folder, tmp_path, file="params"):
    """A recorded state as we read it, having checked that it goes back unchanged; and what was recorded with it."""
    state = load_file(folder / f"{file}.safetensors")
    checkpoint = conversion.read(boxed(tmp_path, state), heads=heads(folder))
    assert (checkpoint.family, checkpoint.report.unexpected, checkpoint.report.missing) == ("authors", (), ())
    assert_same_state(written(checkpoint, tmp_path)["model"], state)
    return checkpoint


def recorded(folder, inputs="inputs", outputs="outputs"):
    return load_file(folder / f"{inputs}.safetensors"), load_file(folder / f"{outputs}.safetensors")


@torch.no_grad()
def test_beit_says_of_hidden_patches_what_the_authors_recorded(golden, tmp_path):
    for folder in sorted((golden / "g01_beit_mim").iterdir()):
        checkpoint, (inputs, outputs) = read_and_back(folder, tmp_path), recorded(folder)
        logits = conversion.build_objective(checkpoint).predictions(
            {"image": inputs["images"], "hidden": inputs["mask"]}
        )
        torch.testing.assert_close(logits, outputs["logits_masked"], **RECORDED)


@torch.no_grad()
def test_data2vec_predicts_what_the_authors_recorded(golden, tmp_path):
    for folder in sorted(each for each in (golden / "g02_data2vec").iterdir() if each.is_dir()):
        checkpoint, (inputs, outputs) = read_and_back(folder, tmp_path, "student"), recorded(folder)
        predicted = conversion.build_objective(checkpoint).predictions(
            {"image": inputs["images"], "hidden": inputs["mask"]}
        )
        torch.testing.assert_close(predicted, outputs["predictions"], **RECORDED)


@torch.no_grad()
def test_deit_says_what_the_authors_recorded(golden, tmp_path):
    folder = golden / "g03_deit_distillation"
    inputs, outputs = recorded(folder, "model_inputs", "model_outputs")
    predictions = conversion.build_objective(read_and_back(folder, tmp_path, "model_params")).predict(
        {"image": inputs["images"]}
    )
    for ours, theirs in (("cls", "logits_cls"), ("dist", "logits_dist"), ("logits", "eval_logits")):
        torch.testing.assert_close(predictions[ours], outputs[theirs], **RECORDED)
    plain = conversion.build_objective(read_and_back(folder, tmp_path, "vit_params")).predict(
        {"image": inputs["images"]}
    )
    torch.testing.assert_close(
        plain["logits"], recorded(folder, "model_inputs", "vit_outputs")[1]["logits"], **RECORDED
    )


@torch.no_grad()
def test_a_finetuned_beit_says_what_the_authors_recorded(golden, tmp_path):
    for folder in sorted((golden / "g11_finetune_and_segmentation").glob("[cm]*")):
        checkpoint, (inputs, outputs) = read_and_back(folder, tmp_path), recorded(folder)
        assert checkpoint.pool == ("mean" if "fc_norm" in folder.name else "token")
        logits = conversion.build_objective(checkpoint).predict({"image": inputs["images"]})["logits"]
        torch.testing.assert_close(logits, outputs["logits"], **RECORDED)


NETWORKS = {
    "ViT with a tanh layer": (Model(**SMALL), "token", {"representation": True}),
    "ViT": (Model(**SMALL), "mean", {}),
    "DeiT, distilled": (Model(**SMALL, distilled=True), "token", {}),
    "BEiT": (Model(**SMALL, trunk="beit", position="relative", layer_scale=0.1), "mean", {}),
    "BEiT, pretraining": (
        Model(**SMALL | {"classes": 0}, trunk="beit", position="shared-relative"),
        "mean",
        {"purpose": "pretrain"},
    ),
    "UPerNet": (Model(**SEGMENTS, decoder="upernet"), "mean", {"purpose": "segment"}),
    "SETR-PUP": (Model(**SEGMENTS, decoder="setr-pup"), "mean", {"purpose": "segment"}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_ours_comes_back_from_a_file_of_the_authors(tmp_path, name):
    model, pool, options = NETWORKS[name]
    ours = network(model, pool, **options)
    (path,) = conversion.write(ours, model, pool, "authors", tmp_path)
    back = conversion.read(path)
    assert (back.model, back.pool if not options.get("purpose") else pool) == (model, pool)
    assert_whole(back, ours)


def test_segmentation_has_the_names_of_mmsegmentation(tmp_path):
    model = Model(**SEGMENTS, decoder="upernet")
    (path,) = conversion.write(network(model, purpose="segment"), model, "mean", "authors", tmp_path)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert {
        "backbone.fpn1.0.weight",
        "backbone.fpn1.1.running_mean",
        "backbone.blocks.0.attn.relative_position_index",
        "decode_head.psp_modules.0.1.conv.weight",
        "decode_head.conv_seg.bias",
        "auxiliary_head.convs.0.bn.weight",
    } <= state.keys()
    bare = conversion.read(boxed(tmp_path, state, "state_dict", meta={"epoch": 1}))  # as mmsegmentation saves it
    assert (bare.purpose, bare.model.decoder, bare.model.classes, bare.model.image_size) == (
        "segment",
        "upernet",
        7,
        64,
    )


def test_a_deepspeed_file_in_half_precision_is_read_in_fp32(tmp_path):
    model = Model(**SMALL, trunk="beit", position="relative", layer_scale=0.1)
    theirs = conversion.authors.write(network(model).trainable_state(), model)["model"]
    halved = {f"module.{name}": value.half() if value.is_floating_point() else value for name, value in theirs.items()}
    path = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": halved, "optimizer": None, "csr_tensor_module_names": set(), "global_steps": 7}, path)
    checkpoint = conversion.read(path)
    assert {value.dtype for value in checkpoint.state.values()} == {torch.float32}
    assert torch.equal(checkpoint.state["head.head.weight"], theirs["head.weight"].half().float())


def test_options_saved_with_the_weights_are_let_through_and_tell_of_layer_scale(tmp_path):
    model = Model(**SMALL, trunk="beit", position="relative", layer_scale=0.1)
    theirs = conversion.authors.write(network(model).trainable_state(), model)["model"]
    options = argparse.Namespace(model="beit", layer_scale_init_value=0.003, lr=1e-3)
    groups = [{"lr": np.float64(1e-3), "lr_scale": np.float32(0.5), "step": np.int64(3)}]  # left by a schedule
    checkpoint = conversion.read(boxed(tmp_path, theirs, args=options, epoch=99, optimizer={"param_groups": groups}))
    assert checkpoint.model.layer_scale == 0.003
    assert checkpoint.report.unexpected == ()


def test_the_decoder_of_mae_stays_behind_and_its_mask_token_is_not_taken_for_ours(tmp_path):
    model = Model(**SMALL)
    theirs = conversion.authors.write(network(model, "token").trainable_state(), model)["model"]
    trunk = {name: value for name, value in theirs.items() if not name.startswith("head")}
    decoder = (
        "decoder_embed.weight",
        "decoder_pos_embed",
        "decoder_blocks.0.norm1.weight",
        "decoder_pred.bias",
        "mask_token",
    )
    checkpoint = conversion.read(boxed(tmp_path, trunk | {name: torch.randn(1, 1, 16) for name in decoder}), heads=4)
    assert sorted(checkpoint.report.left) == sorted(decoder)
    assert checkpoint.report.missing == ("backbone.mask_token", "lm_head.weight", "lm_head.bias")
    assert checkpoint.report.unexpected == ()


def test_what_would_run_code_is_refused_with_the_way_to_convert_it(tmp_path):
    class Payload:
        def __reduce__(self):
            return (print, ("run",))

    path = tmp_path / "weights.pth"
    torch.save({"model": {"weight": torch.ones(1)}, "extra": Payload()}, path)
    with pytest.raises(BenchError, match=r"(?s)would run \S*print.*If you trust it.*weights_only=False") as refused:
        conversion.read(path)
    assert "weights.safetensors" in str(refused.value)


def test_the_conversion_that_a_refusal_proposes_gives_a_file_that_is_read(tmp_path):
    model = Model(**SMALL, trunk="beit", position="relative")
    ours = network(model)
    (path,) = conversion.write(ours, model, "mean", "authors", tmp_path)
    command = CONVERT.format(old=path, new=tmp_path / "new.safetensors")
    program = command.removeprefix("python -c '").removesuffix("'")
    subprocess.run([sys.executable, "-c", program], check=True)
    assert_same_state(conversion.read(tmp_path / "new.safetensors").state, ours.trainable_state())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model": {"fc.weight": torch.ones(1)}},
            "not a Vision Transformer of the authors, timm or transformers: it has fc",
        ),
        ({"model": {}}, "holds no tensors"),
        ([1, 2], "holds a list"),
        ({"vit.encoder.layer.0.output.dense.weight": torch.ones(1)}, "put its config.json beside it"),
        ({"patch_embed.proj.weight": torch.ones(8, 3, 4, 4)}, "lacks 'backbone.cls_token'"),
    ],
)
def test_a_file_of_something_else_is_refused_with_what_it_holds(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(BenchError, match=message):
        conversion.read(tmp_path / "weights.pth")


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"PK\x03\x04 and then nothing")
    (tmp_path / "weights.safetensors").write_bytes(b"\x00" * 20)
    for name in ("weights.pth", "weights.safetensors"):
        with pytest.raises(BenchError, match="damaged"):
            conversion.read(tmp_path / name)


def test_a_width_that_does_not_tell_the_heads_asks_for_them(tmp_path):
    model = Model(**SMALL)
    state = conversion.authors.write(network(model, "token").trainable_state(), model)["model"]
    with pytest.raises(BenchError, match="number of attention heads does not follow from 32 channels; give --heads"):
        conversion.read(boxed(tmp_path, state))


def test_a_tensor_that_nothing_takes_stops_unless_partial(tmp_path):
    model = Model(**SMALL, trunk="beit", position="relative")
    theirs = conversion.authors.write(network(model).trainable_state(), model)["model"] | {
        "adapter.weight": torch.ones(2)
    }
    with pytest.raises(BenchError, match=r"has, unexpectedly, adapter\.weight; --partial reads the rest"):
        conversion.read(boxed(tmp_path, theirs))
    assert conversion.read(boxed(tmp_path, theirs), partial=True).report.unexpected == ("adapter.weight",)


def test_a_pretrained_norm_stays_behind_and_that_of_mean_pooling_begins_anew_as_with_the_authors(tmp_path):
    model = Model(**SMALL | {"classes": 0}, trunk="beit", position="shared-relative")
    (path,) = conversion.write(network(model, purpose="pretrain"), model, "mean", "authors", tmp_path)
    checkpoint = conversion.read(path)
    tuned = build_classifier(
        checkpoint.model.model_copy(update={"classes": 5, "position": "relative"}), Recipe(pool="mean")
    )
    moved = transfer(submodule_state(checkpoint.state, "backbone"), tuned.backbone)
    assert set(moved.left) == {"mask_token", "norm.weight", "norm.bias"}
    assert len(moved.shared) == checkpoint.model.depth
    assert torch.equal(tuned.head.fc_norm.weight, torch.ones(checkpoint.model.width))


def test_a_linear_probe_is_no_network_of_others(tmp_path):
    model = Model(**SMALL)
    with pytest.raises(BenchError, match=r"linear probe.*export the run whose backbone was probed"):
        conversion.write(build_probe(model), model, "token", "authors", tmp_path)


def test_a_teacher_and_a_counter_are_not_written(tmp_path):
    model = Model(**SMALL | {"classes": 0}, trunk="beit", position="relative")
    ours = network(model, purpose="pretrain").trainable_state()
    teacher = {name.replace("backbone", "teacher"): value for name, value in ours.items() if "backbone" in name}
    (path,) = conversion.write({**ours, **teacher, "steps_done": torch.tensor(3)}, model, "mean", "authors", tmp_path)
    assert_same_state(conversion.read(path).state, ours)


def test_a_safetensors_file_with_pickle_in_it_is_never_unpickled(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps({"model": {}}))
    with pytest.raises(BenchError, match="damaged"):
        conversion.read(path)


def test_the_same_weights_read_twice_are_the_same_by_content(tmp_path):
    model = Model(**SMALL, trunk="beit", position="relative")
    state = network(model).trainable_state()
    digests = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_file({key.partition(".")[2]: value for key, value in state.items()}, tmp_path / name / "x.safetensors")
        digests.add(conversion.read(tmp_path / name / "x.safetensors").digest)
    assert len(digests) == 1
    assert outputs_of(conversion.build_objective(conversion.read(tmp_path / "one" / "x.safetensors")), model).shape == (
        2,
        7,
    )
