"""BEiT's pretraining: forward, loss, gradients and optimiser steps of the authors' code."""

from functools import partial

import pytest
import torch
from recorded import (
    arrays,
    check_groups,
    check_rates,
    exactly,
    gradient_norms,
    gradients,
    model_of,
    near,
    number,
    read,
    recipe_of,
    rounded,
    training,
    without_indices,
)

from bench.methods.beit import RecoverVisualTokens
from bench.models.backbone import build
from bench.models.dvae import Tokenizer
from bench.training.schedule import learning_rate, weight_decay

GOLDEN = "g01_beit_mim"


class Recorded(Tokenizer):
    """Gives the recorded words, which a batch brings in place of the tokenizer's images."""

    def __init__(self, words):
        super().__init__()
        self.vocab_size = words

    def encode(self, images):
        return (255 * images).round().long()  # pixels come divided by 255


def named(name):
    return name if name.startswith("lm_head") else f"backbone.{name}"


def ours(recorded):
    """Recorded parameters under our names."""
    return {named(name): value for name, value in without_indices(recorded).items()}


@pytest.fixture
def config(case):
    return read(case / "config.json")


@pytest.fixture
def objective(case, config):
    model = model_of(config["model"])
    objective = RecoverVisualTokens(
        build(model, mask_token=True), Recorded(config["model"]["vocab_size"]), predict_all=False
    )
    objective.load_trainable_state(ours(arrays(case / "params.safetensors")))
    return objective.train()


def batch(images, hidden, words):
    return {
        "image": images,
        "hidden": hidden,
        "token_image": words.flatten(1),
        "position": torch.arange(len(images)),
    }


@pytest.fixture
def given(case):
    inputs = arrays(case / "inputs.safetensors")
    return batch(inputs["images"], inputs["mask"], inputs["token_ids"])


def test_our_network_has_the_recorded_parameters(config, objective):
    assert sum(p.numel() for p in objective.parameters()) == config["n_params"]


def test_the_words_asked_for_are_the_labels(case, objective, given):
    assert torch.equal(objective.visual_tokens(given)[given["hidden"]], arrays(case / "inputs.safetensors")["labels"])


def test_logits_of_hidden_patches_and_loss(case, objective, given):
    path = case / "outputs.safetensors"
    sums, expected = objective(given), arrays(path)
    near(objective.predictions(given), path, "logits_masked", "outputs")
    number((sums["loss"] / sums["count"]).item(), path, "loss", "loss")
    assert (sums["masked_accuracy"] / sums["count"]).item() == pytest.approx(expected["mlm_acc"].item(), abs=1e-6)


def test_logits_of_all_patches(case, objective, given):
    objective.predict_all = True
    path = case / "outputs.safetensors"
    near(objective.predictions(given), path, "logits_all", "outputs", expected=arrays(path)["logits_all"].flatten(0, 1))


def test_in_double_precision_nothing_but_one_rounding_is_left(case, objective, given):
    expected = arrays(case / "outputs_float64.safetensors")
    objective.double()
    given["image"] = given["image"].double()
    outputs = objective(given)
    rounded(objective.predictions(given), expected["logits_masked"], "logits_masked")
    rounded(outputs["loss"] / outputs["count"], expected["loss"], "loss")


def test_every_gradient(case, config, objective, given):
    outputs = objective(given)
    (outputs["loss"] / outputs["count"]).backward()
    gradients(objective, case / "grads.safetensors", named)
    gradient_norms(objective, {named(name): norm for name, norm in config["grad_norm_per_parameter"].items()})


def test_the_schedules_are_the_recorded_ones_to_the_last_step(case, config):
    options, expected = config["optimizer"], arrays(case / "train_outputs.safetensors")
    recipe, steps = recipe_of(options), options["epochs"] * options["niter_per_ep"]
    lr = partial(learning_rate, recipe, steps=steps, steps_per_epoch=options["niter_per_ep"])
    assert [lr(step) for step in range(steps)] == exactly("formulas", expected["lr_schedule"].tolist())
    decays = [weight_decay(recipe, step, steps=steps) for step in range(steps)]
    assert decays == exactly("formulas", expected["wd_schedule"].tolist())


@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_optimiser_steps(case, config, objective, precision):
    options, inputs = config["optimizer"], arrays(case / "train_inputs.safetensors")
    path = case / "train_outputs.safetensors"
    expected = arrays(path)
    if precision == torch.float64:
        expected |= arrays(case / "train_outputs_float64.safetensors")
    update = training(
        objective.to(precision),
        model_of(config["model"]),
        recipe_of(options),
        steps_per_epoch=options["niter_per_ep"],
    )
    check_groups(update, config["param_groups"], named)
    assert len(inputs["images"]) == len(expected["loss"])
    for step, images in enumerate(inputs["images"]):
        done = update(step, [batch(images.to(precision), inputs["masks"][step], inputs["token_ids"][step])])
        sums = dict(zip(done.names, done.sums.tolist(), strict=True))
        check_rates(done.rates, expected, step)
        number(sums["loss"] / sums["count"], path, "loss", "training loss", expected=expected["loss"][step])
        number(done.norm.item(), path, "grad_norm", "gradient norm", expected=expected["grad_norm"][step])
        assert sums["masked_accuracy"] / sums["count"] == pytest.approx(expected["mlm_acc"][step].item(), abs=1e-6)
    path = case / "params_after_5_steps.safetensors"
    for name, value in without_indices(arrays(path)).items():
        near(objective.get_parameter(named(name)), path, name, "weights", expected=value)
