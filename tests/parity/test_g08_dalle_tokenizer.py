"""DALL-E's encoder: the words of the authors' code, from recorded weights of a small one."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from bench.tokenizers import DalleTokenizer


@pytest.fixture
def tokenizer(golden):
    folder = golden / "g08_dvae"
    config = json.loads((folder / "config.json").read_text())
    codebook = FlavaImageCodebook(
        FlavaImageCodebookConfig(
            num_groups=config["group_count"],
            hidden_size=config["n_hid"],
            num_blocks_per_group=config["n_blk_per_group"],
            vocab_size=config["vocab_size"],
        )
    )
    names = json.loads((folder / "key_map_to_transformers_flava.json").read_text())["map"]
    weights = load_file(folder / "encoder_params.safetensors")
    codebook.load_state_dict({names[name]: value for name, value in weights.items()})
    return DalleTokenizer(codebook).eval()


@pytest.fixture
def arrays(golden):
    folder = golden / "g08_dvae"
    return load_file(folder / "inputs.safetensors") | load_file(folder / "outputs.safetensors")


@pytest.mark.parametrize("size", ["112", "small"])
def test_words_are_exact(tokenizer, arrays, size):
    images = arrays[f"pixels_uint8_{size}"].float() / 255
    assert torch.equal(tokenizer.encode(images), arrays[f"tokens_{size}"].flatten(1).long())


@torch.no_grad()
def test_logits(tokenizer, arrays):
    images = arrays["pixels_uint8_112"][:1].float() / 255
    torch.testing.assert_close(
        tokenizer.logits(images), arrays["logits_112_first"].view(1, -1, 14, 14), atol=5e-5, rtol=0
    )
