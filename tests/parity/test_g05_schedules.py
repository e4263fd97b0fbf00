"""Schedules: the authors' learning rates and weight decays, step by step."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from bench.methods.data2vec import Decay
from bench.optim import learning_rate, weight_decay
from bench.spec import Recipe


def recorded(golden, name):
    folder = golden / "g05_schedules"
    return json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors")


def cosines(golden):
    options, values = recorded(golden, "schedules")
    return {name: (o, values[name]) for name, o in options.items() if o["kind"] == "cosine"}


def test_cosine_learning_rates(golden):
    cases = {name: case for name, case in cosines(golden).items() if "warmup_epochs" in case[0]}
    assert cases
    for name, (options, expected) in cases.items():
        recipe = Recipe(
            lr=options["base_value"],
            min_lr=options["final_value"],
            warmup_epochs=options["warmup_epochs"],
            warmup_steps=max(options["warmup_steps"], 0),
            epochs=options["epochs"],
        )
        steps = options["epochs"] * options["niter_per_ep"]
        ours = [learning_rate(recipe, i, steps=steps, steps_per_epoch=options["niter_per_ep"]) for i in range(steps)]
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-15, err_msg=name)


def test_cosine_weight_decay(golden):
    cases = {name: case for name, case in cosines(golden).items() if "warmup_epochs" not in case[0]}
    assert cases
    for name, (options, expected) in cases.items():
        recipe = Recipe(weight_decay=options["base_value"], weight_decay_end=options["final_value"])
        ours = [weight_decay(recipe, step, steps=len(expected)) for step in range(len(expected))]
        np.testing.assert_allclose(ours, expected, rtol=1e-9, err_msg=name)


def test_deit_learning_rate_is_constant_within_an_epoch(golden):
    cases, values = recorded(golden, "deit_lr_per_epoch")
    for name, options in cases.items():
        recipe = Recipe(
            schedule="cosine-per-epoch",
            lr=options["base_lr"],
            lr_reference_batch=512,
            batch_size=options["batch_size_per_process"] * options["world_size"],
            min_lr=options["min_lr"],
            warmup_lr=options["warmup_lr"],
            warmup_epochs=options["warmup_epochs"],
            epochs=options["epochs"],
        )
        steps = 3 * options["epochs"]
        ours = [learning_rate(recipe, i, steps=steps, steps_per_epoch=3) for i in range(steps)]
        np.testing.assert_allclose(ours, np.repeat(values[name], 3), rtol=1e-9, err_msg=name)


def test_linear_learning_rate_of_the_segmentation_recipe(golden):
    folder = golden / "g09_segmentation"
    options = json.loads((folder / "poly_schedule.json").read_text())
    expected = load_file(folder / "poly_schedule.safetensors")["lr"]
    if options["power"] != 1:
        pytest.skip("only the published power 1 is linear")
    for group, lr in enumerate(options["base_lr_of_groups"]):
        recipe = Recipe(
            schedule="linear",
            lr=lr,
            min_lr=options["min_lr"],
            warmup_lr=lr * options["warmup_ratio"],
            warmup_steps=options["warmup_iters"],
        )
        steps = options["max_iters"]
        ours = [learning_rate(recipe, i, steps=steps, steps_per_epoch=100) for i in range(steps)]
        np.testing.assert_allclose(ours, expected[:, group], rtol=1e-9)


def test_the_decay_of_data2vecs_teacher(golden):
    options, values = recorded(golden, "schedules")
    cases = {name: o for name, o in options.items() if o["kind"] == "ema_decay" and "tri" not in o}
    assert cases
    for name, o in cases.items():
        steps = o["epochs"] * o["niter"]
        decay = Decay(o["decay"], o["decay_init"], o["ema_start_at"] / steps, epochs=o["epochs"])
        ours = [decay.at(step, steps=steps) for step in range(steps)]
        np.testing.assert_allclose(ours, values[name], rtol=1e-9, err_msg=name)
