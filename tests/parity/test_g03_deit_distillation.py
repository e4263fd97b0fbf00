"""DeiT: the distillation losses with their gradients, and both networks' logits."""

import json
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from bench.backbones import build
from bench.heads import ClassificationHead
from bench.methods.deit import Distillation
from bench.objective import Classify, Loss
from bench.spec import Model

GOLDEN = "g03_deit_distillation"


class Case(NamedTuple):
    """One recorded loss."""

    name: str
    base_criterion: str
    type: str
    alpha: float
    tau: float


@pytest.fixture
def folder(golden):
    return golden / GOLDEN


@pytest.fixture
def config(folder):
    return json.loads((folder / "config.json").read_text())


def total_loss(case, given, cls, dist, smoothing):
    """(1 - alpha) of the labels' loss plus alpha of the teacher's, as Distil.forward adds them; a mean over images."""
    loss = Loss(smoothing=smoothing if case.base_criterion == "label_smoothing" else 0.0)
    soft = case.base_criterion == "soft_target"
    target = given["soft_targets"] if soft else loss.target(given["labels"], cls.shape[1])
    base = loss(cls, target)
    if case.type == "none":
        return base / len(cls)
    rule = Distillation(case.type, case.alpha, case.tau, "authors")
    return ((1 - case.alpha) * base + case.alpha * rule.loss(dist, given["teacher_logits"])) / len(cls)


def test_every_recorded_loss_and_its_gradients_are_ours(folder, config):
    given, recorded = load_file(folder / "loss_inputs.safetensors"), load_file(folder / "loss_outputs.safetensors")
    for case in (Case(**values) for values in config["loss_cases"]):
        cls, dist = (given[f"{name}_logits"].clone().requires_grad_() for name in ("cls", "dist"))
        loss = total_loss(case, given, cls, dist, config["label_smoothing"])
        loss.backward()
        torch.testing.assert_close(loss.detach(), recorded[f"{case.name}.loss"], atol=2e-6, rtol=0)
        torch.testing.assert_close(cls.grad, recorded[f"{case.name}.grad_cls"], atol=2e-6, rtol=0)
        expected = recorded[f"{case.name}.grad_dist"]
        torch.testing.assert_close(
            torch.zeros_like(dist) if dist.grad is None else dist.grad, expected, atol=2e-6, rtol=0
        )


def classifier(folder, config, *, distilled):
    """Our classifier with the recorded state, its heads' names being the authors' after `head.`."""
    size = config["model"]
    model = Model(
        trunk="vit",
        width=size["embed_dim"],
        depth=size["depth"],
        heads=size["num_heads"],
        image_size=size["img_size"],
        patch_size=size["patch_size"],
        distilled=distilled,
    )
    backbone, classes = build(model), size["num_classes"]
    head = ClassificationHead(model.width, classes, pool="token", prefix_tokens=backbone.prefix_tokens)
    ours = Classify(backbone, head, classes=classes, loss=Loss())
    state = load_file(folder / ("model_params.safetensors" if distilled else "vit_params.safetensors"))
    ours.load_trainable_state({("head." if k.startswith("head") else "backbone.") + k: v for k, v in state.items()})
    return ours.eval()


@torch.no_grad()
def test_the_distilled_networks_heads_and_their_mean_are_the_recorded_ones(folder, config):
    ours, images = classifier(folder, config, distilled=True), load_file(folder / "model_inputs.safetensors")["images"]
    recorded = load_file(folder / "model_outputs.safetensors")
    tokens = ours.backbone.norm(ours.backbone(images).tokens)
    torch.testing.assert_close(tokens[:, 0], recorded["features_cls"], atol=2e-5, rtol=0)
    torch.testing.assert_close(tokens[:, 1], recorded["features_dist"], atol=2e-5, rtol=0)
    outputs = ours.predict({"image": images})
    for name, key in (("cls", "logits_cls"), ("dist", "logits_dist"), ("logits", "eval_logits")):
        torch.testing.assert_close(outputs[name], recorded[key], atol=2e-5, rtol=0)


@torch.no_grad()
def test_the_plain_network_gives_the_recorded_features_and_logits(folder, config):
    ours, images = classifier(folder, config, distilled=False), load_file(folder / "model_inputs.safetensors")["images"]
    recorded = load_file(folder / "vit_outputs.safetensors")
    torch.testing.assert_close(ours.features({"image": images}), recorded["features"], atol=2e-5, rtol=0)
    torch.testing.assert_close(ours.predict({"image": images})["logits"], recorded["logits"], atol=2e-5, rtol=0)
