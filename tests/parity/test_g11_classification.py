"""Fine-tuned BEiT classifiers: tokens of the last block, pooled features, logits and loss, and training steps."""

import math
from functools import partial

import pytest
import torch
from recorded import (
    LIMITS,
    arrays,
    exactly,
    gradient_norms,
    model_of,
    near,
    number,
    read,
    recipe_of,
    rounded,
    training,
    without_indices,
)

from bench.methods.classification import Classify, Loss
from bench.models.backbone import build
from bench.models.heads import ClassificationHead
from bench.training.schedule import learning_rate, weight_decay

GOLDEN = "g11_finetune_and_segmentation"


def is_case(folder):
    """A classifier; the segmentation network is another module's."""
    return folder.is_dir() and "num_classes" in read(folder / "config.json")["model"]


def named(name):
    return f"head.{name}" if name.startswith(("head", "fc_norm")) else f"backbone.{name}"


@pytest.fixture
def config(case):
    return read(case / "config.json")


def classifier(case, options, *, smoothing=0.0):
    model, pool = model_of(options), "mean" if options["use_mean_pooling"] else "token"
    head = ClassificationHead(model.width, options["num_classes"], pool=pool)
    loss = Loss(smoothing=smoothing)
    ours = Classify(build(model, norm=pool == "token"), head, classes=options["num_classes"], loss=loss)
    state = without_indices(arrays(case / "params.safetensors"))
    ours.load_trainable_state({named(name): value for name, value in state.items()})
    return ours


@pytest.fixture
def ours(case, config):
    return classifier(case, config["model"]).eval()


@pytest.fixture
def batch(case):
    inputs = arrays(case / "inputs.safetensors")
    return {"image": inputs["images"], "label": inputs["labels"]}


def answers(ours, batch):
    """Under the recorded names."""
    outputs = ours(batch)
    return {
        "last_block_tokens": ours.backbone(batch["image"]).tokens,
        "pooled_features": ours.features(batch),
        "logits": ours.predict(batch)["logits"],
        "cross_entropy": outputs["loss"] / outputs["count"],
    }


@torch.no_grad()
def test_tokens_features_logits_and_loss_are_the_recorded_ones(case, ours, batch):
    path = case / "outputs.safetensors"
    outputs = answers(ours, batch)
    assert outputs.keys() == arrays(path).keys()
    number(outputs.pop("cross_entropy").item(), path, "cross_entropy", "loss")
    for name, value in outputs.items():
        near(value, path, name, "outputs")


@torch.no_grad()
def test_in_double_precision_nothing_but_one_rounding_is_left(case, ours, batch):
    outputs = answers(ours.double(), batch | {"image": batch["image"].double()})
    for name, expected in arrays(case / "outputs_float64.safetensors").items():
        rounded(outputs[name], expected, name)


def test_the_norm_of_every_gradient(config, ours, batch):
    outputs = ours(batch)
    (outputs["loss"] / outputs["count"]).backward()
    gradient_norms(ours, {named(name): norm for name, norm in config["grad_norm_per_parameter"].items()})


def test_our_position_index_is_the_authors(case, ours):
    recorded = arrays(case / "params.safetensors")
    names = [name for name in recorded if name.endswith("relative_position_index")]
    assert names
    for name in names:
        number = int(name.split(".")[1])
        assert torch.equal(ours.backbone.blocks[number].attn.relative_position_index, recorded[name])


def trained(golden):
    """The cases with training steps. There has to be one."""
    folders = [
        folder for folder in sorted((golden / GOLDEN).iterdir()) if (folder / "train_outputs.safetensors").exists()
    ]
    assert folders, "no case has training steps"
    return folders


def test_the_schedules_of_fine_tuning_are_the_recorded_ones(golden):
    for case in trained(golden):
        options = read(case / "train.json")
        recipe, steps = recipe_of(options), options["epochs"] * options["niter_per_ep"]
        lr = partial(learning_rate, recipe, steps=steps, steps_per_epoch=options["niter_per_ep"])
        assert [lr(step) for step in range(steps)] == exactly("formulas", options["lr_schedule"])
        decays = [weight_decay(recipe, step, steps=steps) for step in range(steps)]
        assert decays == exactly("formulas", options["wd_schedule"])


@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_steps_of_fine_tuning(golden, precision):
    for case in trained(golden):
        options, model = read(case / "train.json"), read(case / "config.json")["model"]
        ours = classifier(case, model, smoothing=options["label_smoothing"]).to(precision)
        before = {name: value.clone() for name, value in ours.named_parameters()}
        recipe = recipe_of(options, layer_decay=options["layer_decay"])
        update = training(ours, model_of(model), recipe, steps_per_epoch=options["niter_per_ep"])
        follow(case, ours, update, options, precision)
        compare_weights(case, ours, before, options)


def follow(case, ours, update, options, precision):
    """Take the recorded steps, each of `update_freq` micro-batches, and compare what each gives."""
    path, inputs = case / "train_outputs.safetensors", arrays(case / "train_inputs.safetensors")
    expected = arrays(path)
    if precision == torch.float64:
        expected |= arrays(case / "train_outputs_float64.safetensors")
    pairs = zip(inputs["images"].to(precision), inputs["labels"], strict=True)
    parts = [{"image": image, "label": label, "position": torch.arange(len(image))} for image, label in pairs]
    together = options["update_freq"]
    assert len(parts[0]["image"]) == options["micro_batch"] and len(parts) == together * len(expected["grad_norm"])
    for step, norm in enumerate(expected["grad_norm"]):
        rows = range(step * together, (step + 1) * together)
        for row in rows:
            outputs = ours(parts[row])
            loss = (outputs["loss"] / outputs["count"]).item()
            number(loss, path, "loss", "training loss", expected=expected["loss"][row])
        done = update(step, [parts[row] for row in rows])
        number(done.norm.item(), path, "grad_norm", "gradient norm", expected=norm)
        rates = [group["lr"] for group in update.optimizer.param_groups]
        for row in rows:
            assert max(rates) == exactly("formulas", expected["lr"][row].item())
            assert min(rates) == exactly("formulas", expected["min_lr"][row].item())


def compare_weights(case, ours, before, options):
    """The recorded ones of the trained weights, and how far every weight has moved."""
    path = case / "train_outputs.safetensors"
    finals = [name for name in arrays(path) if name.startswith("final.")]
    assert finals
    for name in finals:
        near(ours.get_parameter(named(name.removeprefix("final."))), path, name, "weights")
    moved = {name: (value - before[name]).detach().double().norm().item() for name, value in ours.named_parameters()}
    recorded = {named(name): norm for name, norm in options["norm_of_parameter_change"].items()}
    assert moved.keys() == recorded.keys()
    for name, norm in recorded.items():  # every entry may be off by the noise of a weight
        allowed = LIMITS["weights"].noise * math.sqrt(before[name].numel())
        assert moved[name] == pytest.approx(norm, rel=0, abs=allowed), name
