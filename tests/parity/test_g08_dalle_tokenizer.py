"""DALL-E's encoder: the words of the authors' code, from recorded weights of a small one."""

import pytest
import torch
from recorded import arrays, near, number, read
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from bench.models.dvae import DalleTokenizer, from_likelihood, to_likelihood

GOLDEN = "g08_dvae"
PIXELS = "pixels_uint8_"


@pytest.fixture
def folder(golden):
    return golden / GOLDEN


@pytest.fixture
def config(folder):
    return read(folder / "config.json")


@pytest.fixture
def tokenizer(folder, config):
    codebook = FlavaImageCodebook(
        FlavaImageCodebookConfig(
            num_groups=config["group_count"],
            hidden_size=config["n_hid"],
            num_blocks_per_group=config["n_blk_per_group"],
            vocab_size=config["vocab_size"],
        )
    )
    names = read(folder / "key_map_to_transformers_flava.json")["map"]
    weights = arrays(folder / "encoder_params.safetensors")
    codebook.load_state_dict({names[name]: value for name, value in weights.items()})
    return DalleTokenizer(codebook).eval()


@pytest.fixture
def images(folder):
    """Images in [0, 1] by the name of their size."""
    inputs = arrays(folder / "inputs.safetensors")
    pictures = {
        name.removeprefix(PIXELS): value.float() / 255 for name, value in inputs.items() if name.startswith(PIXELS)
    }
    assert pictures
    return pictures


@torch.no_grad()
def test_words_are_exact_and_won_by_the_recorded_margin(folder, config, tokenizer, images):
    path = folder / "outputs.safetensors"
    recorded = arrays(path)
    assert tokenizer.stride == config["downsample"] and tokenizer.vocab_size == config["vocab_size"]
    for size, batch in images.items():
        assert torch.equal(tokenizer.encode(batch), recorded[f"tokens_{size}"].flatten(1).long()), size
        best, second = tokenizer.logits(batch).topk(2, dim=1).values.unbind(1)
        near(best - second, path, f"token_margin_{size}", "words")
        smallest = torch.tensor(config[f"min_margin_{size}"])
        number((best - second).min().item(), path, f"token_margin_{size}", "words", expected=smallest)


@torch.no_grad()
def test_logits(folder, tokenizer, images):
    path = folder / "outputs.safetensors"
    recorded = [name for name in arrays(path) if name.startswith("logits_")]
    assert recorded
    for name in recorded:
        size, first = name.removeprefix("logits_").removesuffix("_first"), name.endswith("_first")
        near(tokenizer.logits(images[size][:1] if first else images[size]), path, name, "words")


def test_pixels_are_moved_off_the_ends_of_the_likelihood_and_back(folder, config, images):
    path = folder / "outputs.safetensors"
    first = next(
        batch for batch in images.values() if batch.shape[-1] == arrays(path)["mapped_pixels_first_row"].shape[-1]
    )
    near(to_likelihood(first)[0, :, 0], path, "mapped_pixels_first_row", "mixed")
    near(from_likelihood(arrays(folder / "inputs.safetensors")["unmap_in"]), path, "unmapped", "mixed")
    assert to_likelihood(torch.zeros(1)).item() == pytest.approx(config["logit_laplace_eps"])
