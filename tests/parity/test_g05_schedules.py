"""Schedules: the authors' learning rates, weight decays and decays of a teacher, step by step."""

import numpy as np
import pytest
from recorded import arrays, read

from bench.config.schema import Recipe
from bench.methods.data2vec import Decay
from bench.training.schedule import learning_rate, weight_decay

GOLDEN = "g05_schedules"


def equal(values, expected, **notes):
    """To nine digits of what our formulas give in double precision, and of the peak where they end at zero."""
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-15 * np.abs(expected).max(), **notes)


def cosine(options):
    steps, per_epoch = options["epochs"] * options["niter_per_ep"], options["niter_per_ep"]
    if "warmup_epochs" not in options:
        recipe = Recipe(weight_decay=options["base_value"], weight_decay_end=options["final_value"])
        return [weight_decay(recipe, step, steps=steps) for step in range(steps)]
    recipe = Recipe(
        lr=options["base_value"],
        min_lr=options["final_value"],
        warmup_epochs=options["warmup_epochs"],
        warmup_steps=max(options["warmup_steps"], 0),
        epochs=options["epochs"],
    )
    return [learning_rate(recipe, step, steps=steps, steps_per_epoch=per_epoch) for step in range(steps)]


def tri_phase(options):
    steps, per_epoch = options["epochs"] * options["niter_per_ep"], options["niter_per_ep"]
    recipe = Recipe(
        schedule="tri-phase",
        lr=options["base_value"],
        min_lr=options["final_value"],
        warmup_steps=int(options["warmup_perc"] * steps),
        cooldown_fraction=options["decay_perc"],
    )
    return [learning_rate(recipe, step, steps=steps, steps_per_epoch=per_epoch) for step in range(steps)]


def ema_decay(options):
    """The teacher's decay, 0 where it is not updated: in our words it then keeps all of itself."""
    steps = options["epochs"] * options["niter"]
    _, constant_share = options.get("tri", (0.0, 0.0))
    ramp = options["ema_start_at"] / steps
    decay = Decay(
        options["decay"], options["decay_init"], ramp, epochs=options["epochs"], constant_share=constant_share
    )
    decays = [decay.at(step, steps=steps) for step in range(steps)]
    return [0.0 if value == 1.0 else value for value in decays]


KINDS = {"cosine": cosine, "tri_phase": tri_phase, "ema_decay": ema_decay}


def test_every_recorded_schedule(golden):
    cases, values = read(golden / GOLDEN / "schedules.json"), arrays(golden / GOLDEN / "schedules.safetensors")
    assert cases.keys() == values.keys()
    assert {case["kind"] for case in cases.values()} == KINDS.keys()
    for name, options in cases.items():
        equal(KINDS[options["kind"]](options), values[name].numpy(), err_msg=name)


def test_deit_learning_rate_is_constant_within_an_epoch(golden):
    cases, values = (
        read(golden / GOLDEN / "deit_lr_per_epoch.json"),
        arrays(golden / GOLDEN / "deit_lr_per_epoch.safetensors"),
    )
    assert cases.keys() == values.keys()
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
        equal(ours, np.repeat(values[name].numpy(), 3), err_msg=name)
        assert max(ours) <= options["scaled_lr"] * (1 + 1e-9)


def test_learning_rates_of_the_segmentation_recipe(golden):
    options = read(golden / "g09_segmentation" / "poly_schedule.json")
    expected = arrays(golden / "g09_segmentation" / "poly_schedule.safetensors")["lr"].numpy()
    assert expected.shape == (options["max_iters"], len(options["base_lr_of_groups"]))
    for group, lr in enumerate(options["base_lr_of_groups"]):
        recipe = Recipe(
            schedule="linear",
            schedule_power=options["power"],
            lr=lr,
            min_lr=options["min_lr"],
            warmup_lr=lr * options["warmup_ratio"],
            warmup_steps=options["warmup_iters"],
        )
        steps = options["max_iters"]
        ours = [learning_rate(recipe, i, steps=steps, steps_per_epoch=100) for i in range(steps)]
        equal(ours, expected[:, group])


@pytest.mark.parametrize("at", range(1, 40))
def test_a_ramp_given_as_a_share_ends_at_the_step_it_stands_for(at):
    decay = Decay(0.9, 0.5, at / 97)
    assert decay.at(at - 1, steps=97) == pytest.approx(0.5 + (at - 1) * 0.4 / at)
    assert decay.at(at, steps=97) == pytest.approx(0.5 + (at - 1) * 0.4 / at)  # stays until the epoch is over
