"""data2vec's pretraining: targets, predictions, loss, gradients, and steps of student and teacher."""

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

from bench.methods.data2vec import Decay, PredictTeacher
from bench.models.backbone import build
from bench.training.schedule import learning_rate, weight_decay

GOLDEN = "g02_data2vec"


class Scaled(PredictTeacher):
    """The authors' option to multiply the loss; -1, as published, does not."""

    factor = 1.0

    def forward(self, batch):
        sums = super().forward(batch)
        return sums | {"loss": self.factor * sums["loss"]}


def named(name):
    """A parameter of the student, under our name."""
    return name if name.startswith("lm_head") else f"backbone.{name}"


def of_teacher(state):
    """A recorded teacher under our names; its head is never read."""
    return {
        f"teacher.{name}": value for name, value in without_indices(state).items() if not name.startswith("lm_head")
    }


def of_student(state):
    return {named(name): value for name, value in without_indices(state).items()}


@pytest.fixture
def config(case):
    return read(case / "config.json")


@pytest.fixture
def objective(case, config):
    rule, optimizer = config["objective"], config["optimizer"]
    assert rule["layer_results"] == "end"  # the only kind of target that we have
    steps = optimizer["epochs"] * optimizer["niter_per_ep"]
    decay = Decay(rule["ema_decay"], rule["ema_decay_init"], rule["ema_start_at"] / steps, optimizer["epochs"])
    objective = Scaled(
        build(model_of(config["model"]), mask_token=True),
        layers=rule["target_layers"],
        beta=rule["l1_beta"],
        norm_targets=rule["post_target_layer_norm"],
        decay=decay,
    )
    objective.factor = 1.0 if rule["loss_scale"] == -1 else rule["loss_scale"]
    student, teacher = (arrays(case / f"{name}.safetensors") for name in ("student", "teacher"))
    objective.load_trainable_state(of_student(student) | of_teacher(teacher) | {"steps_done": torch.tensor(0)})
    return objective.train()


@pytest.fixture
def batch(case):
    inputs = arrays(case / "inputs.safetensors")
    return {"image": inputs["images"], "hidden": inputs["mask"]}


def test_every_block_of_the_teacher(case, objective, batch):
    path = case / "outputs.safetensors"
    expected = arrays(path)["teacher_layer_results"]
    layers = objective.teacher(batch["image"], layers=range(len(expected))).layers
    ours = torch.stack([objective.teacher.patches(tokens) for tokens in layers])
    near(ours, path, "teacher_layer_results", "outputs")


def test_targets_predictions_and_loss(case, objective, batch):
    path = case / "outputs.safetensors"
    near(objective.targets(batch), path, "targets", "outputs")
    near(objective.predictions(batch), path, "predictions", "outputs")
    sums = objective(batch)
    number((sums["loss"] / sums["count"]).item(), path, "loss", "loss")


def test_in_double_precision_nothing_but_roundings_are_left(case, objective, batch):
    expected = arrays(case / "outputs_float64.safetensors")
    objective.double()
    batch["image"] = batch["image"].double()
    outputs = objective(batch)
    rounded(objective.targets(batch), expected["targets"], "targets")
    rounded(objective.predictions(batch), expected["predictions"], "predictions")
    rounded(outputs["loss"] / outputs["count"], expected["loss"], "loss")


def test_every_gradient(case, config, objective, batch):
    outputs = objective(batch)
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
def test_steps_of_student_and_teacher(case, config, objective, precision):
    options, inputs = config["optimizer"], arrays(case / "train_inputs.safetensors")
    path = case / "train_outputs.safetensors"
    expected = arrays(path)
    if precision == torch.float64:
        expected |= arrays(case / "train_outputs_float64.safetensors")
    model, recipe = model_of(config["model"]), recipe_of(options)
    update = training(objective.to(precision), model, recipe, steps_per_epoch=options["niter_per_ep"])
    check_groups(update, config["param_groups"], named)
    assert len(inputs["images"]) == len(expected["loss"])
    for step, images in enumerate(inputs["images"]):
        batch = {"image": images.to(precision), "hidden": inputs["masks"][step], "position": torch.arange(len(images))}
        done = update(step, [batch])
        sums = dict(zip(done.names, done.sums.tolist(), strict=True))
        check_rates(done.rates, expected, step)
        assert objective.decay.at(step, steps=update.steps) == exactly("formulas", expected["ema_decay"][step].item())
        number(sums["loss"] / sums["count"], path, "loss", "training loss", expected=expected["loss"][step])
        number(done.norm.item(), path, "grad_norm", "gradient norm", expected=expected["grad_norm"][step])
    for who, ours in (("student", of_student), ("teacher", of_teacher)):
        path = case / f"{who}_after_5_steps.safetensors"
        for name, value in ours(arrays(path)).items():
            near(objective.get_parameter(name), path, name, "weights", expected=value)


def test_the_teachers_index_of_positions_is_never_averaged(golden):
    """The authors' average truncates it for the decays that the note lists; ours leaves it as it is."""
    note = read(golden / GOLDEN / "integer_buffer_note.json")
    lowered = [name for name, entry in note.items() if entry["index_values_lowered_by_one"]]
    assert lowered
    for name in lowered:
        grid, decay = name.removeprefix("grid").split("_decay")
        size = {"embed_dim": 8, "depth": 1, "num_heads": 1, "mlp_ratio": 1, "img_size": int(grid), "patch_size": 1}
        backbone = build(model_of(size | {"use_shared_rel_pos_bias": True}), mask_token=True)
        objective = PredictTeacher(backbone, layers=[0], beta=1.0, norm_targets=True, decay=Decay(float(decay)))
        assert len(backbone.rel_pos_bias.relative_position_bias_table) == note[name]["table_rows"]
        before = backbone.rel_pos_bias.relative_position_index.clone()
        objective.after_step(0.5)
        assert torch.equal(objective.teacher.rel_pos_bias.relative_position_index, before)
