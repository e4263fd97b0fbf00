"""DeiT: labels, and a convolutional teacher through a token of its own (P-DeiT = arXiv 2012.12877).

Numbers, variants and departures: deit.toml. The loss is checked against the authors' (golden g03).
Shapes: B images, C classes.

Departs from the reference: at inference the two heads' logits are averaged, as the authors' code does; their paper
adds probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.config.schema import Model, Protocol, Scalar
from bench.config.stage import Stage
from bench.errors import BenchError, unknown
from bench.methods import Parts, View
from bench.methods.classification import Classify, Loss, build_classifier
from bench.methods.objective import Batch, Objective, count
from bench.models.backbone import CONVNET, convnet
from bench.pipeline.transforms import train_view

KINDS = ("hard", "soft", "none")
SCALINGS = ("authors", "batchmean")


def view(stage: Stage) -> View:
    """Augmented images with their labels."""
    assert stage.recipe
    return train_view(stage.recipe, stage.model, stage.protocol)


def objective(stage: Stage, parts: Parts) -> Objective:
    """A classifier from starting weights; with a teacher unless options.distillation is none."""
    assert stage.recipe
    student, distillation = build_classifier(stage.model, stage.recipe), read_distillation(stage.options)
    if distillation.kind == "none":
        return student
    return Distil(student, load_teacher(stage, parts), distillation)


@dataclass(frozen=True, slots=True)
class Distillation:
    """The distillation loss and its weight."""

    kind: str = "hard"
    alpha: float = 0.5  # weight of the distillation loss; the labels have 1 - alpha
    tau: float = 1.0  # temperature of soft distillation
    soft_scaling: str = "authors"  # of soft distillation: divided by the number of classes; or batchmean: not

    def loss(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Loss of the student's logits (B, C) against the teacher's, summed over images.

        hard: cross entropy with the teacher's prediction (P-DeiT equation 3). soft: tau**2 times the KL divergence from
        the teacher's probabilities at temperature tau (equation 2), which the authors' losses.py divides by C as well.
        """
        logits, teacher = logits.float(), teacher.float()
        if self.kind == "hard":
            return F.cross_entropy(logits, teacher.argmax(dim=-1), reduction="sum")
        student, target = (logits / self.tau).log_softmax(dim=-1), (teacher / self.tau).log_softmax(dim=-1)
        divergence = self.tau**2 * F.kl_div(student, target, reduction="sum", log_target=True)
        return divergence / logits.shape[-1] if self.soft_scaling == "authors" else divergence


def read_distillation(options: dict[str, Scalar]) -> Distillation:
    """The distillation that a stage's options describe. BenchError for an unknown word."""
    for key, known in (("distillation", KINDS), ("soft_scaling", SCALINGS)):
        if options[key] not in known:
            raise unknown(f"supervised.options.{key}", str(options[key]), known)
    kind, scaling = str(options["distillation"]), str(options["soft_scaling"])
    return Distillation(kind, float(options["alpha"]), float(options["tau"]), scaling)


class Distil(Classify):
    """The class token's head learns the labels, the distillation token's head a frozen teacher.

    Student and teacher see the same augmented and mixed images. Without a distillation token one head learns both.
    """

    frozen = ("teacher",)
    teacher: Classify

    def __init__(self, student: Classify, teacher: Classify, distillation: Distillation) -> None:
        super().__init__(
            student.backbone, student.head, classes=student.classes, loss=student.loss, mixer=student.mixer
        )
        self.teacher, self.distillation = teacher, distillation
        self.freeze()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        outputs, target = self.predict(batch), self.target(batch)
        with torch.no_grad():
            teacher = self.teacher.predict(batch)["logits"]
        student = outputs.get("dist", outputs["logits"])
        label_loss = self.loss(outputs.get("cls", outputs["logits"]), target)
        teacher_loss = self.distillation.loss(student, teacher)
        alpha = self.distillation.alpha
        return {
            "loss": (1 - alpha) * label_loss + alpha * teacher_loss,
            "count": count(target),
            "label_loss": label_loss.detach(),
            "teacher_loss": teacher_loss.detach(),
            "teacher_agreement": (student.argmax(-1) == teacher.argmax(-1)).float().sum(),
        } | self.scalars(outputs["logits"], batch)


def load_teacher(stage: Stage, parts: Parts) -> Classify:
    """The teacher stage's classifier, or a timm model with its published weights (options.teacher)."""
    name = str(stage.options["teacher"])
    if name == "stage":
        trained = parts["teacher"]
        assert isinstance(trained, Classify), "the teacher stage trains a classifier"
        return trained
    network, classes = convnet(Model(trunk=f"{CONVNET}{name}"), pretrained=True), stage.model.classes
    if network.num_classes != classes:
        raise BenchError(
            f"supervised.options.teacher = {name!r} has {network.num_classes} classes, the task has "
            f"{classes}; 'stage' trains a teacher on the task"
        )
    return Classify(Renormalised(network, stage.protocol), None, classes=classes, loss=Loss())


class Renormalised(nn.Module):
    """A network with its own normalisation (mean, std), for images that are normalised as the stage's protocol says."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, protocol: Protocol) -> None:
        super().__init__()
        self.network = network
        own: Any = network.pretrained_cfg
        here, there = torch.tensor([protocol.mean, protocol.std]), torch.tensor([own["mean"], own["std"]])
        self.register_buffer("scale", (here[1] / there[1]).view(3, 1, 1))
        self.register_buffer("shift", ((here[0] - there[0]) / there[1]).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images * self.scale + self.shift)
