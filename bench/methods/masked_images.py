"""What masked image modelling methods share (BEiT, data2vec, a SimMIM): view, mask, predictions of hidden patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.config.schema import Model, Scalar
from bench.methods import View
from bench.methods.objective import Batch, Objective, arrays
from bench.models.backbone import Backbone
from bench.models.init import initialise
from bench.pipeline.masking import Masking
from bench.pipeline.masking import build as build_masking


def masking(model: Model, options: dict[str, Scalar]) -> Masking:
    """The masking that a pretraining stage's options describe; data2vec's is the same with other numbers."""
    return build_masking(
        str(options["masking"]),
        model.grid,
        hidden_fraction=float(options["hidden_fraction"]),
        block_min_fraction=float(options["block_min_fraction"]),
        block_max_fraction=float(options["block_max_fraction"]),
    )


@dataclass(frozen=True)
class HidingView:
    """Adds "hidden" (N,) to another view, row by row."""

    view: View
    masking: Masking

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        return self.view(sample) | {"hidden": torch.from_numpy(self.masking().ravel())}


class Recover(Objective):
    """Hide patches from the backbone and ask what was there; everything: ask for every patch, hidden or not."""

    backbone: Backbone

    def __init__(self, backbone: Backbone, answers: int, *, everything: bool) -> None:
        super().__init__()
        self.backbone, self.everything = backbone, everything
        self.hides = hasattr(backbone, "mask_token")
        self.lm_head = nn.Linear(backbone.width, answers)
        initialise(self, "beit-pretrain", backbone.init_std)

    def asked(self, batch: Batch) -> Tensor:
        """True at patches that are asked for, (B, N)."""
        return torch.ones_like(batch["hidden"]) if self.everything else batch["hidden"]

    def answers(self, batch: Batch) -> Tensor:
        """What the head says at the patches asked for, image by image, row by row: (M, V) or (M, pixels)."""
        hidden = batch["hidden"] if self.hides else None
        tokens = self.backbone(batch["image"], hidden).tokens
        return self.lm_head(self.backbone.norm(self.backbone.patches(tokens)[self.asked(batch)])).float()

    def pictures(self, batch: Batch) -> dict[str, np.ndarray]:
        """Image, and its hidden patches (B, g, g)."""
        grid = (self.backbone.grid, self.backbone.grid)
        return arrays({"image": batch["image"]}) | {"hidden": batch["hidden"].unflatten(1, grid).cpu().numpy()}
