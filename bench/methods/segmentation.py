"""Semantic segmentation: a decoder on the backbone, cross entropy over labelled pixels.

Shapes: B images, S x S pixels, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.config.schema import Model, Recipe
from bench.errors import BenchError
from bench.methods.classification import initialised_backbone
from bench.methods.objective import Batch, Objective, arrays
from bench.models.backbone import Backbone
from bench.models.heads import LinearSegmentation, SetrPup
from bench.models.upernet import AUXILIARY_WEIGHT, UperNet

DECODERS: dict[str, Callable[..., nn.Module]] = {"linear": LinearSegmentation, "setr-pup": SetrPup, "upernet": UperNet}


class Segment(Objective):
    """Learn a label per pixel. A batch holds "map" (B, S, S); pixels of `ignore_label` have no loss.

    decoder: reads the patch tokens after each block in its `layers`; see models/heads.py and models/upernet.py.
    """

    backbone: Backbone
    decoder: Any

    def __init__(self, backbone: Backbone, decoder: nn.Module, *, ignore_label: int) -> None:
        super().__init__()
        self.backbone, self.decoder, self.ignore_label = backbone, decoder, ignore_label

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        layers = self.backbone(batch["image"], layers=self.decoder.layers).layers
        return self.decoder(*(self.backbone.patches(tokens) for tokens in layers))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        outputs, labels = self.predict(batch), batch["map"].long()
        loss = self._loss(outputs["logits"], labels)
        if "auxiliary" in outputs:
            loss = loss + AUXILIARY_WEIGHT * self._loss(outputs["auxiliary"], labels)
        right = outputs["logits"].argmax(1) == labels
        # The mean is over all pixels, the ignored ones too: mmsegmentation 0.11, losses/cross_entropy_loss.py.
        pixels = torch.tensor(float(labels.numel()), device=labels.device)
        return {"loss": loss, "count": pixels, "pixel_accuracy": right.sum().float()}

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, ignore_index=self.ignore_label, reduction="sum")

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, np.ndarray]:
        """Image, map and prediction (B, S, S)."""
        parts = batch["image"].split(4)  # logits of all of them at once would be large
        prediction = torch.cat([self.predict({"image": part})["logits"].argmax(1) for part in parts])
        return arrays({"image": batch["image"], "map": batch["map"], "prediction": prediction})


def build_segmenter(model: Model, recipe: Recipe, *, ignore_label: int) -> Segment:
    """Build the segmentation network of a stage, with the decoder that `model.decoder` names."""
    if model.decoder not in DECODERS:
        raise BenchError(f"segmentation needs model.decoder, one of {', '.join(DECODERS)}, not {model.decoder!r}")
    backbone = initialised_backbone(model, recipe, norm=False)
    shape: dict[str, Any] = {"size": model.image_size, "depth": model.depth}
    if model.decoder != "linear":
        shape["patch_size"] = model.patch_size
    decoder = DECODERS[model.decoder](model.width, model.classes, **shape)
    objective = Segment(backbone, decoder, ignore_label=ignore_label)
    return objective.freeze_backbone() if recipe.freeze else objective
