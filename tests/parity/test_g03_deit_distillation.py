"""DeiT: the distillation losses with their gradients, and both networks' logits."""

from typing import NamedTuple

import pytest
import torch
from recorded import arrays, model_of, near, read, rounded, without_indices

from bench.config.schema import Recipe
from bench.methods.classification import Classify, Loss
from bench.methods.deit import Distil, Distillation
from bench.methods.objective import Objective
from bench.models.backbone import build
from bench.models.heads import ClassificationHead
from bench.training.optim import parameter_groups

GOLDEN = "g03_deit_distillation"
BASES = ("cross_entropy", "label_smoothing", "soft_target")


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
    return read(folder / "config.json")


class Answers(Objective):
    """A network whose answers are recorded."""

    def __init__(self, **answers):
        super().__init__()
        self.answers = answers

    def predict(self, batch):
        return self.answers


def total_loss(case, given, cls, dist, smoothing):
    """What DeiT's objective makes of the recorded logits; a mean over images."""
    loss = Loss(smoothing=smoothing if case.base_criterion == "label_smoothing" else 0.0)
    both = {"logits": (cls + dist) / 2, "cls": cls, "dist": dist}
    batch = {"label": given["labels"]} | (
        {"target": given["soft_targets"]} if case.base_criterion == "soft_target" else {}
    )
    student = Classify(Answers(), None, classes=cls.shape[1], loss=loss)
    if case.type == "none":
        student.predict = lambda batch: {"logits": cls}
        outputs = student(batch)
    else:
        rule = Distillation(case.type, case.alpha, case.tau, "authors")
        distil = Distil(student, Answers(logits=given["teacher_logits"]), rule)
        distil.predict = lambda batch: both
        outputs = distil(batch)
    return outputs["loss"] / outputs["count"]


def losses(folder, config):
    """Every recorded case with our loss and its gradients: by array name."""
    given = arrays(folder / "loss_inputs.safetensors")
    for case in (Case(**values) for values in config["loss_cases"]):
        assert case.base_criterion in BASES
        cls, dist = (given[f"{name}_logits"].clone().requires_grad_() for name in ("cls", "dist"))
        loss = total_loss(case, given, cls, dist, config["label_smoothing"])
        loss.backward()
        grad_dist = torch.zeros_like(dist) if dist.grad is None else dist.grad
        yield case.name, {"loss": loss, "grad_cls": cls.grad, "grad_dist": grad_dist}


def test_every_recorded_loss_and_its_gradients_are_ours(folder, config):
    path, seen = folder / "loss_outputs.safetensors", set()
    recorded, exact = arrays(path), arrays(folder / "loss_outputs_float64.safetensors")
    for name, ours in losses(folder, config):
        for part, value in ours.items():
            kind = "distillation loss" if part == "loss" else "distillation gradients"
            near(value, path, f"{name}.{part}", kind, expected=recorded[f"{name}.{part}"])
            near(value, path, f"{name}.{part}", kind, expected=exact[f"{name}.{part}"])
            seen.add(f"{name}.{part}")
    assert seen == recorded.keys() == exact.keys()


def test_all_three_kinds_of_distillation_are_among_the_cases(config):
    assert {case["type"] for case in config["loss_cases"]} == {"none", "soft", "hard"}
    assert {case["base_criterion"] for case in config["loss_cases"]} == set(BASES)


def test_the_batch_mean_is_larger_than_the_authors_scaling_by_the_number_of_classes(folder, config):
    given = arrays(folder / "loss_inputs.safetensors")
    student, teacher = given["dist_logits"], given["teacher_logits"]
    authors, mean = (
        Distillation("soft", 1.0, 3.0, scaling).loss(student, teacher) for scaling in ("authors", "batchmean")
    )
    torch.testing.assert_close(mean, config["n_classes"] * authors)


def classifier(folder, config, *, distilled):
    """Our classifier with the recorded state, its heads' names being the authors' after `head.`."""
    model, classes = model_of(config["model"], trunk="vit", distilled=distilled), config["model"]["num_classes"]
    backbone = build(model)
    head = ClassificationHead(model.width, classes, pool="token", prefix_tokens=backbone.prefix_tokens)
    ours = Classify(backbone, head, classes=classes, loss=Loss())
    state = without_indices(arrays(folder / ("model_params.safetensors" if distilled else "vit_params.safetensors")))
    ours.load_trainable_state({("head." if k.startswith("head") else "backbone.") + k: v for k, v in state.items()})
    return ours.eval()


def answers(ours, images):
    """Features and logits under the recorded names."""
    tokens = ours.backbone.norm(ours.backbone(images).tokens)
    outputs = ours.predict({"image": images})
    if "dist" not in outputs:
        return {"features": ours.features({"image": images}), "logits": outputs["logits"]}
    features = {"features_cls": tokens[:, 0], "features_dist": tokens[:, 1]}
    return features | {"logits_cls": outputs["cls"], "logits_dist": outputs["dist"], "eval_logits": outputs["logits"]}


@torch.no_grad()
@pytest.mark.parametrize(("distilled", "file"), [(True, "model_outputs"), (False, "vit_outputs")])
def test_features_and_logits_of_each_head_and_their_mean_are_the_recorded_ones(folder, config, distilled, file):
    ours, images = (
        classifier(folder, config, distilled=distilled),
        arrays(folder / "model_inputs.safetensors")["images"],
    )
    path = folder / f"{file}.safetensors"
    outputs = answers(ours, images)
    assert outputs.keys() == arrays(path).keys()
    for name, value in outputs.items():
        near(value, path, name, "outputs")
    exact, doubled = arrays(folder / f"{file}_float64.safetensors"), answers(ours.double(), images.double())
    assert doubled.keys() == exact.keys()
    for name, value in doubled.items():
        rounded(value, exact[name], name)


def test_the_exemptions_from_weight_decay_are_the_authors(folder, config):
    ours = classifier(folder, config, distilled=True)
    groups = parameter_groups(ours, Recipe(weight_decay=0.05))
    matrices = {name for group in groups if not group["decay"] for name in group["names"]}
    matrices = {name for name in matrices if ours.get_parameter(name).ndim > 1}
    assert matrices == {f"backbone.{name}" for name in config["no_weight_decay_names"]}
