"""DeiT: labels, and a convolutional teacher through a token of its own (P-DeiT = arXiv 2012.12877).

Numbers, variants and departures: deit.toml. The loss is checked against the authors' (golden g03).
Shapes: B images, C classes.

Departs from the reference: at inference the two heads' logits are averaged, as the authors' code does; their paper
adds probabilities.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.config.schema import Model, Protocol, Scalar
from bench.config.stage import Stage
from bench.errors import BenchError, unknown
from bench.methods import Parts, View
from bench.methods.classification import Classify, Loss, classify
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
    student, rule = classify(stage.model, stage.recipe), distillation(stage.options)
    return student if rule.kind == "none" else Distil(student, teacher(stage, parts), rule)


class Distillation(NamedTuple):
    """How the teacher's logits become a loss, and how much it counts."""

    kind: str = "hard"
    alpha: float = 0.5  # weight of the teacher; the labels have the rest
    tau: float = 1.0
    soft_scaling: str = "authors"

    def loss(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Loss of the student's logits (B, C) against the teacher's, summed over images.

        hard: cross entropy with the teacher's answer (P-DeiT equation 3). soft: tau**2 times the divergence from the
        teacher's probabilities at temperature tau (equation 2), which the authors' losses.py divides by C as well.
        """
        logits, teacher = logits.float(), teacher.float()
        if self.kind == "hard":
            return F.cross_entropy(logits, teacher.argmax(dim=-1), reduction="sum")
        student, target = (logits / self.tau).log_softmax(dim=-1), (teacher / self.tau).log_softmax(dim=-1)
        divergence = self.tau**2 * F.kl_div(student, target, reduction="sum", log_target=True)
        return divergence / logits.shape[-1] if self.soft_scaling == "authors" else divergence


def distillation(options: dict[str, Scalar]) -> Distillation:
    """The rule that a stage's options describe. BenchError for a word that means nothing."""
    for key, known in (("distillation", KINDS), ("soft_scaling", SCALINGS)):
        if options[key] not in known:
            raise unknown(f"supervised.options.{key}", str(options[key]), known)
    kind, scaling = str(options["distillation"]), str(options["soft_scaling"])
    return Distillation(kind, float(options["alpha"]), float(options["tau"]), scaling)


class Distil(Classify):
    """Labels for the class token's head, a frozen teacher for the distillation token's.

    Student and teacher see the same augmented and mixed images. Without a distillation token one head learns both.
    """

    frozen = ("teacher",)
    teacher: Classify

    def __init__(self, student: Classify, teacher: Classify, rule: Distillation) -> None:
        super().__init__(
            student.backbone, student.head, classes=student.classes, loss=student.loss, mixer=student.mixer
        )
        self.teacher, self.rule = teacher, rule
        self.freeze()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        outputs, target = self.predict(batch), self.target(batch)
        with torch.no_grad():
            answer = self.teacher.predict(batch)["logits"]
        followed = outputs.get("dist", outputs["logits"])
        labels = self.loss(outputs.get("cls", outputs["logits"]), target)
        imitation = self.rule.loss(followed, answer)
        return {
            "loss": (1 - self.rule.alpha) * labels + self.rule.alpha * imitation,
            "count": count(target),
            "label_loss": labels.detach(),
            "teacher_loss": imitation.detach(),
            "teacher_agreement": (followed.argmax(-1) == answer.argmax(-1)).float().sum(),
        } | self.scalars(outputs["logits"], batch)


def teacher(stage: Stage, parts: Parts) -> Classify:
    """The teacher stage's classifier, or a timm model with its published weights (options.teacher)."""
    name = str(stage.options["teacher"])
    if name == "stage":
        trained = parts["teacher"]
        assert isinstance(trained, Classify), "the teacher stage trains a classifier"
        return trained
    network, classes = convnet(Model(trunk=f"{CONVNET}{name}"), pretrained=True), stage.model.classes
    if network.num_classes != classes:
        raise BenchError(
            f"supervised.options.teacher = {name!r} answers with {network.num_classes} classes, the task has "
            f"{classes}; 'stage' trains a teacher on the task"
        )
    return Classify(Restandardised(network, stage.protocol), None, classes=classes, loss=Loss())


class Restandardised(nn.Module):
    """A published network that was trained on images standardised in another way than this stage's."""

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
