"""Linear probe: a classifier on frozen features, one for every block of the backbone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.config.schema import Model
from bench.errors import BenchError
from bench.methods.classification import Classify, Loss
from bench.methods.objective import Batch, count
from bench.models.backbone import Backbone, build
from bench.models.heads import LayerwiseProbe


class LinearProbe(Classify):
    """Linear classifiers on the frozen features of a pretrained backbone.

    One per block, trained together, as BEiT run_linear_eval.py does. The backbone is in evaluation mode and is saved
    with the classifiers.
    """

    def __init__(self, backbone: Backbone, head: LayerwiseProbe, *, classes: int) -> None:
        super().__init__(backbone, head, classes=classes, loss=Loss())
        self.freeze_backbone()

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return self.head(self._layers(batch))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        outputs, target = self.predict(batch), self.target(batch)
        losses = [self.loss(logits, target) for name, logits in outputs.items() if name != "logits"]
        return {"loss": torch.stack(losses).sum(), "count": count(target)} | self.scalars(outputs["logits"], batch)

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        return self.head.features(self._layers(batch)[self.head.layer - 1])

    @torch.no_grad()
    def _layers(self, batch: Batch) -> tuple[Tensor, ...]:
        return self.backbone(batch["image"], layers=range(self.backbone.depth)).layers


def build_probe(model: Model, *, layer: int = 0) -> LinearProbe:
    """Build linear classifiers on every block; that of block `layer` (from 1) is scored, by default at three quarters.

    Three quarters: blocks 9 of 12 (P-BEiT Table 9).
    """
    layer = layer or math.ceil(0.75 * model.depth)
    if not 1 <= layer <= model.depth:
        raise BenchError(f"probe.options.layer = {layer}: the backbone has blocks 1 to {model.depth}")
    backbone = build(model, norm=False)
    head = LayerwiseProbe(
        model.width, model.classes, depth=model.depth, layer=layer, prefix_tokens=backbone.prefix_tokens
    )
    return LinearProbe(backbone, head, classes=model.classes)
