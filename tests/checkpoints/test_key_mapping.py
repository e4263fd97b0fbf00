"""Tables of names are read in both directions, and fused queries, keys and values come back whole."""

import pytest
import torch

from bench.checkpoints.formats.key_mapping import Names, fuse_qkv, split_qkv, with_prefix

NAMES = Names(
    (
        ("head", "classifier"),
        *with_prefix((("norm1", "before"), ("mlp.fc1", "inner")), "blocks.{}", "layer.{}"),
        ("decoder.steps.{}.{}", "up.{}.at.{}"),
        ("norm", "last"),
        ("norm", "other"),
    )
)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("head.weight", "classifier.weight"),
        ("blocks.11.mlp.fc1.bias", "layer.11.inner.bias"),
        ("decoder.steps.3.0.weight", "up.3.at.0.weight"),
        ("norm", "last"),
    ],
)
def test_a_name_goes_there_and_back(ours, theirs):
    assert NAMES.theirs(ours) == theirs
    assert NAMES.ours(theirs) == ours


@pytest.mark.parametrize(
    "name", ["headless.weight", "blocks.x.norm1.weight", "blocks.0.norm2.weight", "my.head.weight"]
)
def test_a_name_that_only_resembles_one_is_not_taken_for_it(name):
    assert NAMES.theirs(name) is None


def test_what_has_two_names_there_is_read_by_both_and_written_by_the_first():
    assert NAMES.ours("other.bias") == NAMES.ours("last.bias") == "norm.bias"


def test_of_two_tensors_with_one_name_of_ours_the_second_is_strange():
    known, strange = NAMES.read({"last.bias": torch.zeros(1), "other.bias": torch.ones(1)})
    assert (known["norm.bias"].item(), strange) == (0.0, ("other.bias",))


def test_a_state_is_split_into_what_is_known_and_what_is_not():
    state = {"classifier.weight": torch.ones(1), "adapter.weight": torch.ones(1)}
    known, strange = NAMES.read(state)
    assert (list(known), strange) == (["head.weight"], ("adapter.weight",))


@pytest.mark.parametrize("key_bias", [True, False])
def test_fused_tensors_come_back_whole(key_bias):
    biases = ["qkv.bias"] if key_bias else ["q_bias", "v_bias"]
    state = {f"blocks.0.attn.{name}": torch.randn(12 if "qkv" in name else 4) for name in biases}
    state |= {"blocks.0.attn.qkv.weight": torch.randn(12, 4), "norm.weight": torch.randn(4)}
    split = split_qkv(state)
    assert torch.equal(split["blocks.0.attn.k.weight"], state["blocks.0.attn.qkv.weight"][4:8])
    assert ("blocks.0.attn.k.bias" in split) is key_bias
    again = fuse_qkv(split, key_bias=key_bias)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_a_third_that_is_missing_leaves_the_others_as_they_are():
    split = split_qkv({"blocks.0.attn.qkv.weight": torch.randn(12, 4)})
    del split["blocks.0.attn.k.weight"]
    assert fuse_qkv(split, key_bias=True).keys() == split.keys()
