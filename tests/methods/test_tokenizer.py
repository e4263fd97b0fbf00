"""Tokenizers: one word for each patch, learned without collapse, the same in any batch; DALL-E's by folder."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig, ViTConfig, ViTModel

from bench.config.schema import Model, Protocol, Recipe
from bench.config.stage import Stage
from bench.errors import BenchError
from bench.methods import tokenizer as tokenizer_module
from bench.methods.tokenizer import divergence_from_uniform, gumbel_noise, perplexity
from bench.models.dvae import DalleTokenizer, DiscreteVAE, Tokenizer, agreement, check_agreement

OPTIONS = {"words": 8, "width": 16, "kl_weight": 1e-3, "kl_ramp": 0.2, "temperature": 0.1, "cooling": 0.5}


def stage(**options):
    model = Model(image_size=16, patch_size=8)
    return Stage(
        kind="tokenizer", method="beit", task="toy", model=model, recipe=Recipe(), protocol=Protocol(), options=options
    )


def objective(seed=0, **options):
    torch.manual_seed(seed)
    return tokenizer_module.objective(stage(**{**OPTIONS, **options}))


def batch(images=16, seed=0):
    """Flat patches of four colours: four words are enough, and needed."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]])
    drawn = colours[torch.randint(0, 4, (images, 2, 2), generator=generator)].movedim(-1, 1)
    pixels = drawn.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)
    return {"image": torch.zeros(images, 3, 16, 16), "token_image": pixels, "position": torch.arange(images)}


def train(objective, steps, lr=1e-2):
    optimiser, losses = torch.optim.AdamW(objective.parameters(), lr=lr), []
    for step in range(steps):
        outputs = objective(objective.prepare(batch(seed=step), seed=0, step=step, batch_size=16))
        optimiser.zero_grad()
        (outputs["loss"] / outputs["count"]).backward()
        optimiser.step()
        objective.after_step((step + 1) / steps)
        losses.append({name: float(value.detach() / outputs["count"]) for name, value in outputs.items()})
    return losses


@pytest.mark.parametrize(("patch_size", "image_size"), [(4, 24), (8, 48), (16, 224)])
def test_there_is_one_word_for_each_patch(patch_size, image_size):
    model = Model(image_size=image_size, patch_size=patch_size)
    tokenizer = tokenizer_module.build(model, OPTIONS)
    words = tokenizer.encode(torch.rand(2, 3, image_size // 2, image_size // 2))
    assert words.shape == (2, model.grid**2)
    assert tokenizer.decode(words).shape == (2, 3, image_size // 2, image_size // 2)


def test_words_lie_where_their_patches_lie():
    torch.manual_seed(0)
    tokenizer = DiscreteVAE(8, 4, 16)
    tokenizer.encoder = tokenizer.encoder[:1]  # a single convolution, which sees little beyond its own place
    tokenizer.encoder[0] = torch.nn.Conv2d(3, 16, 4, stride=4)
    image = torch.rand(1, 3, 12, 12)
    before = tokenizer.scores(tokenizer.features(image))
    image[:, :, 4:8, 8:12] += 1  # row 1, column 2
    changed = (before != tokenizer.scores(tokenizer.features(image))).any(dim=1).flatten()
    assert changed.nonzero().flatten().tolist() == [1 * 3 + 2]


@pytest.mark.parametrize(("patch_size", "complaint"), [(5, "must be even"), (12, "power of two"), (2, "power of two")])
def test_patches_without_a_fitting_word_are_refused(patch_size, complaint):
    with pytest.raises(BenchError, match=complaint):
        tokenizer_module.build(Model(patch_size=patch_size), OPTIONS)


def test_learning_finds_the_words_that_the_pictures_are_made_of():
    trained = objective()
    losses = train(trained, 150)
    assert losses[-1]["reconstruction_error"] < 0.1 * losses[0]["reconstruction_error"]
    given = batch(64, seed=999)
    images = given["token_image"] / 255
    again = trained.tokenizer.decode(trained.tokenizer.encode(images))
    assert (again - images).abs().mean() < 0.1  # the hard words say what the soft mixtures said


def test_without_the_divergence_most_words_are_never_chosen():
    def used(kl_weight):
        outputs = objective(words=32, kl_weight=kl_weight)
        train(outputs, 60, lr=3e-3)
        return float(perplexity(outputs.tokenizer.logits(batch(64)["token_image"] / 255)))

    assert used(0.02) > 1.5 * used(0.0)


def test_gradients_reach_every_parameter():
    trained = objective()
    trained.after_step(0.5)
    trained(trained.prepare(batch(), seed=0, step=0, batch_size=16))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.parameters())


def test_noise_belongs_to_the_place_in_the_global_batch():
    whole = objective().prepare(batch(), seed=1, step=3, batch_size=16)
    given = batch()
    part = {name: value[8:] for name, value in given.items()}
    assert torch.equal(objective().prepare(part, seed=1, step=3, batch_size=16)["noise"], whole["noise"][8:])
    assert not torch.equal(objective().prepare(given, seed=1, step=4, batch_size=16)["noise"], whole["noise"])


def test_parts_of_a_batch_add_up_to_the_whole():
    trained = objective().eval()
    given = trained.prepare(batch(), seed=0, step=0, batch_size=16)
    parts = [trained({name: value[part] for name, value in given.items()}) for part in (slice(0, 4), slice(4, 16))]
    for name in ("loss", "count", "reconstruction_error", "divergence"):
        torch.testing.assert_close(parts[0][name] + parts[1][name], trained(given)[name])


def test_the_temperature_falls_and_then_stays():
    trained = objective()
    given = trained.prepare(batch(), seed=0, step=0, batch_size=16)
    losses = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        trained.after_step(progress)
        losses.append(float(trained(given)["reconstruction_error"].detach()))
    assert len(set(losses[:3])) == 3
    assert losses[3] == losses[2]


def test_progress_is_in_the_checkpoint():
    before, after = objective(), objective(seed=1)
    before.after_step(0.25)
    after.load_trainable_state(before.trainable_state())
    assert float(after.progress) == 0.25


def test_gumbel_noise_has_its_known_mean_and_deviation():
    noise = gumbel_noise((200_000,), seed=0)
    assert noise.mean() == pytest.approx(0.5772, abs=0.01)
    assert noise.std() == pytest.approx(np.pi / 6**0.5, abs=0.01)


def test_the_divergence_is_none_for_an_undecided_choice_and_largest_for_a_certain_one():
    certain = torch.tensor([100.0, 0.0, 0.0, 0.0]).view(1, 4, 1, 1)
    divergence = divergence_from_uniform(torch.cat([torch.zeros(1, 4, 1, 1), certain]))
    torch.testing.assert_close(divergence, torch.tensor([0.0, np.log(4)], dtype=torch.float32), atol=1e-6, rtol=0)


def test_perplexity_counts_the_words_in_use():
    words = torch.nn.functional.one_hot(torch.tensor([0, 1, 0, 1]), 8).float()
    assert perplexity(words.mT.view(1, 8, 2, 2)) == pytest.approx(2.0)


def test_pictures_show_words_and_what_is_drawn_from_them():
    shown = objective().pictures(batch(3))
    assert shown["words"].shape == (3, 2, 2)
    assert shown["reconstruction"].shape == (3, 3, 8, 8)
    assert shown["reconstruction"].dtype == np.uint8


@pytest.mark.parametrize("name", ["kl_ramp", "cooling", "temperature"])
def test_shares_out_of_range_are_refused(name):
    with pytest.raises(BenchError, match=rf"tokenizer.options.{name} = 0.0: should be above 0"):
        objective(**{name: 0.0})


class Rounded(Tokenizer):
    """Two words, by the brightness of a pixel, which bf16 rounds to steps of 1/256."""

    words, stride = 2, 1

    def features(self, images):
        scale = torch.ones(1, 3, 1, 1) / 3
        return torch.nn.functional.conv2d(images, scale)

    def scores(self, features):
        return torch.cat([features - 0.7510, 0.7510 - features], dim=1)


def test_agreement_is_the_share_of_words_that_reduced_precision_leaves():
    tokenizer = Rounded()
    images = torch.linspace(0.749, 0.753, 101).view(101, 1, 1, 1).expand(-1, 3, 1, 1)
    tokenizer.set_precision("bf16")
    reduced = tokenizer.encode(images)
    tokenizer.set_precision("fp32")
    expected = (reduced == tokenizer.encode(images)).float().mean()
    tokenizer.set_precision("bf16")
    assert 0.3 < expected < 0.9
    assert agreement(tokenizer, images) == expected
    assert tokenizer.precision == "bf16"


def test_a_precision_that_changes_words_is_refused():
    tokenizer = Rounded()
    tokenizer.set_precision("bf16")
    check_agreement(tokenizer, torch.rand(2, 3, 8, 8).round())
    with pytest.raises(BenchError, match=r"% of the visual tokens are those of fp32, 99.9% must be"):
        check_agreement(tokenizer, torch.full((4, 3, 1, 1), 0.7515))


def test_fp32_needs_no_check():
    assert agreement(Rounded(), torch.rand(2, 3, 8, 8)) == 1.0


def test_an_unknown_precision_is_refused():
    with pytest.raises(BenchError, match="Did you mean bf16"):
        Rounded().set_precision("bfloat16")


def test_words_under_autocast_are_those_of_full_precision():
    torch.manual_seed(0)
    tokenizer = DiscreteVAE(64, 4, 32)
    images = torch.rand(16, 3, 24, 24)
    expected = tokenizer.encode(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer.encode(images), expected)


@pytest.fixture
def small_dalle(tmp_path):
    torch.manual_seed(0)
    config = FlavaImageCodebookConfig(hidden_size=4, num_blocks_per_group=1, vocab_size=16)
    codebook = FlavaImageCodebook(config)
    codebook.save_pretrained(tmp_path)
    return codebook, tmp_path


def test_dalles_encoder_is_read_from_a_folder(small_dalle):
    codebook, folder = small_dalle
    images = torch.rand(2, 3, 32, 32)
    ours = DalleTokenizer.load(str(folder))
    assert ours.vocab_size == 16
    assert torch.equal(ours.encode(images), codebook.get_codebook_indices(0.8 * images + 0.1).flatten(1))


def test_another_network_is_not_taken_for_dalles(tmp_path):
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32)
    ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(BenchError, match="is not DALL-E's encoder: it lacks blocks"):
        DalleTokenizer.load(str(tmp_path))


def test_a_missing_folder_is_named():
    with pytest.raises(BenchError, match=r"tokenizer './dall-e': no such folder; 'trained' trains one"):
        DalleTokenizer.load("./dall-e")


def test_without_a_network_the_error_says_what_to_download(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BenchError, match="hf download facebook/flava-image-codebook --local-dir FOLDER"):
        DalleTokenizer.load("facebook/flava-image-codebook")


def test_openais_pickle_is_refused_with_the_conversion_that_helps():
    with pytest.raises(BenchError, match="is a pickle, which may run any code") as error:
        DalleTokenizer.load("encoder.pkl")
    assert "torch.load('encoder.pkl', 'cpu', weights_only=False)" in str(error.value)


def test_other_safetensors_are_not_taken_for_dalles(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(BenchError, match="is not DALL-E's encoder"):
        DalleTokenizer.load(str(tmp_path / "other.safetensors"))
    with pytest.raises(BenchError, match="no such file"):
        DalleTokenizer.load(str(tmp_path / "missing.safetensors"))
