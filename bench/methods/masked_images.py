"""What methods of masked image modelling share (BEiT, data2vec, a SimMIM): hidden patches, and predictions for them.

Shapes: B images, N patches, D width, M target patches in the whole batch: those whose content is to be predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.config.schema import Model, Scalar
from bench.methods import View
from bench.methods.objective import Batch, Objective, arrays
from bench.models.backbone import Backbone
from bench.models.init import initialise
from bench.pipeline.masking import Masking
from bench.pipeline.masking import build as build_masking


def masking(model: Model, options: dict[str, Scalar]) -> Masking:
    """The masking that a pretraining stage's options describe: masking, hidden_fraction, block_{min,max}_fraction."""
    return build_masking(
        str(options["masking"]),
        model.grid,
        hidden_fraction=float(options["hidden_fraction"]),
        block_min_fraction=float(options["block_min_fraction"]),
        block_max_fraction=float(options["block_max_fraction"]),
    )


@dataclass(frozen=True)
class HidingView:
    """Adds "hidden" (N,) bool to the sample of another view: True at patches that the student must not see."""

    view: View
    masking: Masking

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        return self.view(sample) | {"hidden": torch.from_numpy(self.masking().ravel())}


class Recover(Objective):
    """Base of masked image modelling: a backbone that sees hidden patches as mask tokens, and a linear head.

    A subclass writes `forward`: it compares `predictions(batch)` with what it wants at `target_patches(batch)`.
    outputs: width of the head, such as the size of a codebook or the pixels of a patch.
    predict_all: the targets are all patches, hidden or not. A backbone without a mask token sees every patch.
    """

    backbone: Backbone

    def __init__(self, backbone: Backbone, outputs: int, *, predict_all: bool = False) -> None:
        super().__init__()
        self.backbone, self.predict_all = backbone, predict_all
        self.lm_head = nn.Linear(backbone.width, outputs)
        initialise(self, "beit-pretrain", backbone.init_std)

    def target_patches(self, batch: Batch) -> Tensor:
        """True at target patches, (B, N)."""
        return torch.ones_like(batch["hidden"]) if self.predict_all else batch["hidden"]

    def predictions(self, batch: Batch) -> Tensor:
        """Output of the head at the target patches, image by image, row by row: (M, outputs), fp32."""
        hidden = batch["hidden"] if hasattr(self.backbone, "mask_token") else None
        tokens = self.backbone(batch["image"], hidden).tokens
        # As the authors: only target patches go through norm and head (BEiT modeling_pretrain.py).
        return self.lm_head(self.backbone.norm(self.backbone.patches(tokens)[self.target_patches(batch)])).float()

    def pictures(self, batch: Batch) -> dict[str, np.ndarray]:
        """Image, and its hidden patches (B, g, g)."""
        grid = (self.backbone.grid, self.backbone.grid)
        return arrays({"image": batch["image"]}) | {"hidden": batch["hidden"].unflatten(1, grid).cpu().numpy()}


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images (B, C, H, W) into the pixels of their patches, row by row: (B, N, C * patch_size**2), fp32."""
    return F.unfold(images.float(), patch_size, stride=patch_size).mT
