"""Supervised classification: smoothed or mixed labels, softmax or sigmoid loss, mean pooling or a class token.

Shapes: B images, N patches, D width, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.config.schema import Model, Recipe
from bench.methods.objective import Batch, Objective, arrays, count
from bench.models.backbone import CONVNET, Backbone, build, convnet
from bench.models.heads import ClassificationHead
from bench.models.init import initialise
from bench.pipeline.mixup import Mixer


@dataclass(frozen=True, slots=True)
class Loss:
    """Classification loss of (B, C) logits, summed over images."""

    kind: str = "softmax"  # or sigmoid: one yes-or-no question per class, their losses added (big_vision losses.py)
    smoothing: float = 0.0

    def target(self, labels: Tensor, classes: int) -> Tensor:
        """Smoothed one-hot targets (B, C) of labels (B,)."""
        return F.one_hot(labels, classes) * (1 - self.smoothing) + self.smoothing / classes

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        logits = logits.float()  # half precision under autocast
        if self.kind == "sigmoid":
            return F.binary_cross_entropy_with_logits(logits, target.float(), reduction="sum")
        return -(target * logits.log_softmax(dim=-1)).sum()


class Classify(Objective):
    """Learn labels: a backbone and a head, or a convolutional network with its own (head None).

    mixer: Mixup and CutMix; its soft targets already hold the label smoothing.
    """

    backbone: Any  # a Backbone when there is a head
    head: Any

    def __init__(
        self, backbone: nn.Module, head: nn.Module | None, *, classes: int, loss: Loss, mixer: Mixer | None = None
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.classes, self.loss, self.mixer = classes, loss, mixer

    def prepare(self, batch: Batch, *, seed: int, step: int, batch_size: int) -> Batch:
        batch = super().prepare(batch, seed=seed, step=step, batch_size=batch_size)
        if self.mixer is None:
            return batch
        place = {"seed": seed, "step": step, "positions": batch["position"], "batch_size": batch_size}
        image, target = self.mixer(batch["image"], batch["label"], **place)
        return batch | {"image": image, "target": target}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        if self.head is None:
            return {"logits": self.backbone(batch["image"])}
        return self.head(self.backbone.norm(self.backbone(batch["image"]).tokens))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """With a distillation token both heads learn the labels (P-DeiT section 4, fine-tuning without a teacher)."""
        outputs, target = self.predict(batch), self.target(batch)
        heads = [outputs["cls"], outputs["dist"]] if "dist" in outputs else [outputs["logits"]]
        loss = torch.stack([self.loss(logits, target) for logits in heads]).mean()
        return {"loss": loss, "count": count(target)} | self.scalars(outputs["logits"], batch)

    def target(self, batch: Batch) -> Tensor:
        """(B, C): the mixer's, else made from the labels."""
        return batch["target"] if "target" in batch else self.loss.target(batch["label"], self.classes)

    def scalars(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """{"accuracy": the number of right predictions}; {} for mixed images, of which none is simply right."""
        return {} if "target" in batch else {"accuracy": (logits.argmax(-1) == batch["label"]).float().sum()}

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """Input of the head's classifier, (B, D): for nearest neighbours."""
        return self.head.features(self.backbone.norm(self.backbone(batch["image"]).tokens))

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, np.ndarray]:
        """Image, label, prediction, and the attention (B, g, g) of the last block's class token, if there is one."""
        tensors = {"image": batch["image"], "label": batch["label"]}
        tensors["prediction"] = self.predict(batch)["logits"].argmax(-1)
        if isinstance(self.backbone, Backbone):
            attention = self.backbone.attention_map(batch["image"]).mean(dim=1)
            tensors["attention"] = attention.unflatten(1, (self.backbone.grid, self.backbone.grid))
        return arrays(tensors)


def build_classifier(
    model: Model, recipe: Recipe, *, style: str | None = None, bias: float = 0.0, representation: bool = False
) -> Classify:
    """Build the classifier of a stage with starting weights: supervised training, fine-tuning, or a teacher.

    style: of initialisation, see `initialise`; by default the fine-tuning style of the trunk's authors.
    bias, representation: of the head, see ClassificationHead.
    """
    loss = Loss(recipe.loss, recipe.label_smoothing)
    mixer = Mixer(recipe, model.classes) if recipe.mixup or recipe.cutmix else None
    if model.trunk.startswith(CONVNET):
        return Classify(convnet(model, recipe), None, classes=model.classes, loss=loss, mixer=mixer)
    backbone = initialised_backbone(model, recipe, norm=recipe.pool == "token", style=style)
    head = ClassificationHead(
        model.width,
        model.classes,
        pool=recipe.pool,
        prefix_tokens=backbone.prefix_tokens,
        init_scale=recipe.head_init_scale,
        bias=bias,
        representation=representation,
        eps=model.norm_eps,
    )
    objective = Classify(backbone, head, classes=model.classes, loss=loss, mixer=mixer)
    return objective.freeze_backbone() if recipe.freeze else objective


def initialised_backbone(model: Model, recipe: Recipe, *, norm: bool, style: str | None = None) -> Backbone:
    """A backbone for fine-tuning or supervised training, initialised in the style of the trunk's authors."""
    backbone = build(model, recipe, norm=norm)
    initialise(backbone, style or ("beit-finetune" if model.trunk == "beit" else "deit"), model.init_std)
    return backbone
