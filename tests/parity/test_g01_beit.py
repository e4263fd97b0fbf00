"""BEiT's pretraining: forward, loss, gradients and five optimiser steps of the authors' code."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bench.backbones import build
from bench.methods.beit import RecoverWords
from bench.optim import build as build_optimizer
from bench.optim import parameter_groups, set_rates
from bench.spec import Model, Recipe
from bench.tokenizers import Tokenizer

GOLDEN = "g01_beit_mim"


class Recorded(Tokenizer):
    """Gives the recorded words, which a batch brings in place of the tokenizer's images."""

    def __init__(self, words):
        super().__init__()
        self.words = words

    def encode(self, images):
        return (255 * images).round().long()  # pixels come divided by 255


def model_of(options):
    """Our description of the recorded network."""
    shared, own = options["use_shared_rel_pos_bias"], options["use_rel_pos_bias"]
    return Model(
        trunk="beit",
        width=options["embed_dim"],
        depth=options["depth"],
        heads=options["num_heads"],
        image_size=options["img_size"],
        patch_size=options["patch_size"],
        position="shared-relative" if shared else "relative" if own else "absolute",
        layer_scale=options["init_values"] or 0.0,
    )


def ours(recorded):
    """Recorded parameters under our names; index buffers are our own."""
    return {
        name if name.startswith("lm_head") else f"backbone.{name}": value
        for name, value in recorded.items()
        if not name.endswith("relative_position_index")
    }


def recipe_of(options):
    return Recipe(
        lr=options["lr"],
        min_lr=options["min_lr"],
        weight_decay=options["weight_decay"],
        weight_decay_end=options["weight_decay_end"],
        warmup_epochs=options["warmup_epochs"],
        clip_grad=options["clip_grad"],
        betas=options["betas"],
        eps=options["eps"],
    )


@pytest.fixture
def objective(case):
    config = json.loads((case / "config.json").read_text())
    objective = RecoverWords(
        build(model_of(config["model"]), hides=True), Recorded(config["model"]["vocab_size"]), everything=False
    )
    objective.load_trainable_state(ours(load_file(case / "params.safetensors")))
    return objective.train()


def batch(images, hidden, words):
    return {"image": images, "hidden": hidden, "token_image": words.flatten(1)}


def given(case):
    arrays = load_file(case / "inputs.safetensors")
    return batch(arrays["images"], arrays["mask"], arrays["token_ids"])


def test_logits_of_hidden_patches_and_loss(case, objective):
    expected = load_file(case / "outputs.safetensors")
    found = objective(given(case))
    torch.testing.assert_close(objective.answers(given(case)), expected["logits_masked"], atol=2e-5, rtol=0)
    torch.testing.assert_close(found["loss"] / found["count"], expected["loss"], rtol=2e-6, atol=0)
    torch.testing.assert_close(found["masked_accuracy"] / found["count"], expected["mlm_acc"].float().view(()))


def test_logits_of_all_patches(case, objective):
    objective.everything = True
    expected = load_file(case / "outputs.safetensors")["logits_all"]
    torch.testing.assert_close(objective.answers(given(case)), expected.flatten(0, 1), atol=2e-5, rtol=0)


def test_every_gradient(case, objective):
    found = objective(given(case))
    (found["loss"] / found["count"]).backward()
    expected = ours(load_file(case / "grads.safetensors"))
    largest = max(gradient.abs().max() for gradient in expected.values())
    parameters = dict(objective.named_parameters())
    assert parameters.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (parameters[name].grad - gradient).abs().max() < 1e-5 * largest, name


def test_five_optimiser_steps(case, objective):
    options = json.loads((case / "config.json").read_text())["optimizer"]
    recipe, expected = recipe_of(options), load_file(case / "train_outputs.safetensors")
    optimizer = build_optimizer(parameter_groups(objective, recipe), recipe, torch.device("cpu"))
    arrays = load_file(case / "train_inputs.safetensors")
    steps = options["epochs"] * options["niter_per_ep"]
    for step in range(len(arrays["images"])):
        rates = set_rates(optimizer, recipe, step, steps=steps, steps_per_epoch=options["niter_per_ep"])
        found = objective(batch(arrays["images"][step], arrays["masks"][step], arrays["token_ids"][step]))
        loss = found["loss"] / found["count"]
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(objective.parameters(), recipe.clip_grad)
        optimizer.step()
        assert rates == pytest.approx((expected["lr"][step].item(), expected["wd"][step].item()), rel=1e-9)
        assert loss.item() == pytest.approx(expected["loss"][step].item(), abs=1e-5)
        assert norm.item() == pytest.approx(expected["grad_norm"][step].item(), rel=1e-5)
    for name, value in ours(load_file(case / "params_after_5_steps.safetensors")).items():
        torch.testing.assert_close(objective.get_parameter(name), value, atol=1e-5, rtol=0, msg=name)
