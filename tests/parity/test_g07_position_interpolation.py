"""Handing weights over to another grid: relative-bias tables and absolute embeddings, as recorded."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bench.backbones import build, transfer
from bench.positions import geometric_offsets, resize_embedding, resize_table
from bench.spec import Model

GOLDEN = "g07_position_interpolation"
RELATIVE = ["rel_14_to_24_shared", "rel_14_to_24_per_layer", "rel_14_to_8", "rel_14_to_14", "seg_rel_14_to_32_shared"]
ABSOLUTE = ["abs_14_to_24_cls", "abs_14_to_24_cls_dist", "abs_14_to_8_cls"]


@pytest.fixture
def folder(golden):
    return golden / GOLDEN


def arrays(folder, kind, name):
    """The recorded arrays of one case by their key in the state."""
    every = load_file(folder / f"{kind}.safetensors")
    return {key.partition("/")[2]: value for key, value in every.items() if key.startswith(f"{name}/")}


def facts(folder, name):
    return json.loads((folder / "config.json").read_text())[name]


@pytest.mark.parametrize("name", RELATIVE)
def test_a_hand_over_to_another_grid_leaves_the_recorded_tables(folder, name):
    case, given, recorded = facts(folder, name), arrays(folder, "inputs", name), arrays(folder, "outputs", name)
    size = {"width": 4 * case["heads"], "depth": case["depth"], "heads": case["heads"], "patch_size": 2}
    position = "shared-relative" if case["input_is_shared_table"] else "relative"
    old = build(Model(trunk="beit", position=position, image_size=2 * case["source_grid"], **size))
    new = build(Model(trunk="beit", position="relative", image_size=2 * case["target_grid"], **size))
    transfer(old.state_dict() | given, new)
    for key, expected in recorded.items():
        torch.testing.assert_close(new.state_dict()[key], expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", [name for name in RELATIVE if name.startswith("rel") and "14_to_14" not in name])
def test_old_offsets_stand_where_the_authors_put_them(folder, name):
    case = facts(folder, name)
    offsets = geometric_offsets(case["source_grid"], case["target_grid"])
    np.testing.assert_allclose(offsets, case["source_positions"], rtol=1e-9)


@pytest.mark.parametrize("name", ABSOLUTE)
def test_absolute_embeddings_are_resized_as_recorded(folder, name):
    case, given, recorded = facts(folder, name), arrays(folder, "inputs", name), arrays(folder, "outputs", name)
    resized = resize_embedding(given["pos_embed"], case["target_grid"], prefix_tokens=case["extra_tokens"])
    torch.testing.assert_close(resized, recorded["pos_embed"], atol=2e-6, rtol=0)


def test_a_segmentation_hand_over_resizes_both_kinds_of_position(folder):
    name = "seg_rel_abs_14_to_32"
    given, recorded = arrays(folder, "inputs", name), arrays(folder, "outputs", name)
    table = "blocks.0.attn.relative_position_bias_table"
    torch.testing.assert_close(resize_table(given[table], 32), recorded[table], atol=2e-6, rtol=0)
    resized = resize_embedding(given["pos_embed"], 32, prefix_tokens=1)
    torch.testing.assert_close(resized, recorded["pos_embed"], atol=2e-6, rtol=0)
