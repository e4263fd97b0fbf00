"""data2vec's pretraining: targets, predictions, loss, gradients, and five steps of student and teacher."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bench.backbones import build
from bench.methods.data2vec import Decay, PredictTeacher
from bench.optim import build as build_optimizer
from bench.optim import parameter_groups, set_rates
from bench.spec import Model, Recipe

GOLDEN = "g02_data2vec"


def read(case):
    return json.loads((case / "config.json").read_text())


def named(state, prefix):
    """Recorded parameters under our names, the backbone's below `prefix`."""
    return {
        name if name.startswith("lm_head") else f"{prefix}.{name}": value
        for name, value in state.items()
        if not name.endswith("relative_position_index")
    }


def without_head(state):
    return {name: value for name, value in state.items() if not name.startswith("lm_head")}


def scale(case):
    """What the recorded loss is multiplied by; -1 is not at all."""
    factor = read(case)["objective"]["loss_scale"]
    return 1.0 if factor == -1 else factor


@pytest.fixture
def objective(case):
    config = read(case)
    options, rule, optimizer = config["model"], config["objective"], config["optimizer"]
    model = Model(
        trunk="beit",
        width=options["embed_dim"],
        depth=options["depth"],
        heads=options["num_heads"],
        image_size=options["img_size"],
        patch_size=options["patch_size"],
        position="shared-relative",
        layer_scale=options["init_values"],
    )
    steps = optimizer["epochs"] * optimizer["niter_per_ep"]
    objective = PredictTeacher(
        build(model, hides=True),
        layers=rule["target_layers"],
        beta=rule["l1_beta"],
        norm_targets=rule["post_target_layer_norm"],
        decay=Decay(
            rule["ema_decay"], rule["ema_decay_init"], rule["ema_start_at"] / steps, epochs=optimizer["epochs"]
        ),
    )
    student = named(load_file(case / "student.safetensors"), "backbone")
    teacher = without_head(named(load_file(case / "teacher.safetensors"), "teacher"))
    objective.load_trainable_state(student | teacher | {"steps_done": torch.tensor(0)})
    return objective.train()


@pytest.fixture
def batch(case):
    arrays = load_file(case / "inputs.safetensors")
    return {"image": arrays["images"], "hidden": arrays["mask"]}


def test_every_block_of_the_teacher(case, objective, batch):
    expected = load_file(case / "outputs.safetensors")["teacher_layer_results"]
    found = objective.teacher(batch["image"], layers=range(len(expected))).layers
    for block, (tokens, recorded) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(objective.teacher.patches(tokens), recorded, atol=2e-5, rtol=0, msg=str(block))


def test_targets_predictions_and_loss(case, objective, batch):
    expected = load_file(case / "outputs.safetensors")
    torch.testing.assert_close(objective.targets(batch), expected["targets"], atol=2e-5, rtol=0)
    torch.testing.assert_close(objective.predictions(batch), expected["predictions"], atol=2e-5, rtol=0)
    found = objective(batch)
    loss = scale(case) * found["loss"] / found["count"]
    assert loss.item() == pytest.approx(expected["loss"].item(), rel=2e-6)


def test_every_gradient(case, objective, batch):
    found = objective(batch)
    (scale(case) * found["loss"] / found["count"]).backward()
    expected = named(load_file(case / "grads.safetensors"), "backbone")
    largest = max(gradient.abs().max() for gradient in expected.values())
    parameters = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    assert parameters.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (parameters[name].grad - gradient).abs().max() < 1e-5 * largest, name


def test_five_steps_of_student_and_teacher(case, objective):
    options, expected = read(case)["optimizer"], load_file(case / "train_outputs.safetensors")
    recipe = Recipe(
        **{key: options[key] for key in ("lr", "min_lr", "weight_decay", "weight_decay_end", "warmup_epochs")},
        **{key: options[key] for key in ("clip_grad", "betas", "eps")},
    )
    optimizer = build_optimizer(parameter_groups(objective, recipe), recipe, torch.device("cpu"))
    arrays = load_file(case / "train_inputs.safetensors")
    steps = options["epochs"] * options["niter_per_ep"]
    for step in range(len(arrays["images"])):
        set_rates(optimizer, recipe, step, steps=steps, steps_per_epoch=options["niter_per_ep"])
        found = objective({"image": arrays["images"][step], "hidden": arrays["masks"][step]})
        loss = scale(case) * found["loss"] / found["count"]
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(objective.parameters(), recipe.clip_grad)
        optimizer.step()
        objective.after_step((step + 1) / steps)
        assert loss.item() == pytest.approx(expected["loss"][step].item(), abs=1e-5)
        assert norm.item() == pytest.approx(expected["grad_norm"][step].item(), rel=1e-5)
        assert objective.decay.at(step, steps=steps) == pytest.approx(expected["ema_decay"][step].item(), rel=1e-9)
    student = named(load_file(case / "student_after_5_steps.safetensors"), "backbone")
    teacher = without_head(named(load_file(case / "teacher_after_5_steps.safetensors"), "teacher"))
    for name, value in (student | teacher).items():
        torch.testing.assert_close(objective.get_parameter(name), value, atol=1e-5, rtol=0, msg=name)
