"""data2vec: predict, from a picture with hidden patches, what a slow copy of oneself makes of the whole picture.

P-d2v = arXiv 2202.03555. Numbers and sources: data2vec.toml.
Shapes: B images, N patches, D width, M hidden patches in the whole batch.

Departs from the reference: the average is over parameters only; the authors' also averages, and truncates, an integer
index buffer. Golden g02 checks the objective, g05 the decay.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.config.stage import Stage
from bench.errors import BenchError
from bench.methods import Parts, View
from bench.methods.masked_images import HidingView, masking
from bench.methods.objective import Batch, Objective, arrays, count
from bench.models.backbone import Backbone, build
from bench.models.init import initialise
from bench.pipeline.transforms import crop_flip_jitter


def view(stage: Stage) -> View:
    """One crop, which student and teacher share, and which patches are hidden from the student."""
    assert stage.recipe
    if stage.options["masking"] == "none":
        raise BenchError("pretrain.options.masking = 'none': data2vec predicts hidden patches; use 'block' or 'random'")
    return HidingView(crop_flip_jitter(stage.recipe, stage.model, stage.protocol), masking(stage.model, stage.options))


def objective(stage: Stage, parts: Parts) -> Objective:
    """A backbone with a mask token and starting weights, and its teacher, which starts as a copy."""
    assert stage.recipe
    options = stage.options
    return PredictTeacher(
        build(stage.model, stage.recipe, hides=True),
        layers=target_layers(stage.model.depth, float(options["top_layers"])),
        beta=float(options["beta"]),
        norm_targets=bool(options["norm_targets"]),
        decay=Decay(
            end=float(options["decay"]),
            start=float(options["decay_start"]),
            ramp=float(options["decay_ramp"]),
            epochs=stage.recipe.epochs,
            constant_share=stage.recipe.cooldown_fraction if stage.recipe.schedule == "tri-phase" else 0.0,
        ),
    )


def target_layers(depth: int, top: float) -> tuple[int, ...]:
    """The last blocks, numbered from 0, whose outputs are the targets: a share of all (below 1) or a count."""
    count = max(1, round(top * depth)) if top < 1 else round(top)
    if not 0 < top <= depth:
        raise BenchError(f"pretrain.options.top_layers = {top:g}: the backbone has 1 to {depth} blocks to predict")
    return tuple(range(depth - count, depth))


class Decay(NamedTuple):
    """How slowly the teacher follows: the share of itself that it keeps in a step.

    Constant at `end`, or first rising to it from `start`, linearly over `ramp`, a share of the training. In the last
    share `constant_share` it stays as it is: there the authors' tri-phase schedule lets the learning rate fall.
    """

    end: float
    start: float = 0.999
    ramp: float = 0.0
    epochs: float = 1.0
    constant_share: float = 0.0

    def at(self, step: int, *, steps: int) -> float:
        """The decay in step `step` (from 0) of `steps`.

        A ramp that ends within an epoch keeps its last value until the next one begins.
        Source: data2vec engine_for_cyclical.py.
        """
        if self.constant_share and step > (1 - self.constant_share) * steps:
            return 1.0
        ramp, per_epoch = round(self.ramp * steps, 6), steps / self.epochs  # a share that meant a step means it still
        if step // per_epoch * per_epoch >= ramp:
            return self.end
        return self.start + min(step, math.ceil(ramp) - 1) * (self.end - self.start) / ramp


class PredictTeacher(Objective):
    """Smooth L1 between the student's patches and the mean of the teacher's top layers, over hidden patches.

    The teacher is saved with the student but not trained; it sees the whole picture, in evaluation mode.
    Source: data2vec modeling_cyclical.py and engine_for_cyclical.py.
    """

    backbone: Backbone
    teacher: Backbone
    steps_done: Tensor

    def __init__(
        self, backbone: Backbone, *, layers: Sequence[int], beta: float, norm_targets: bool, decay: Decay
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.lm_head = nn.Linear(backbone.width, backbone.width)
        initialise(self, "beit-pretrain", backbone.init_std)
        self.teacher = copy.deepcopy(backbone).requires_grad_(False).eval()
        self.layers, self.beta, self.norm_targets, self.decay = layers, beta, norm_targets, decay
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))

    def started(self) -> None:
        self.teacher.load_state_dict(self.backbone.state_dict())

    def train(self, mode: bool = True) -> PredictTeacher:
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        targets, predictions = self.targets(batch), self.predictions(batch)  # (M, D)
        loss = F.smooth_l1_loss(predictions, targets, beta=self.beta, reduction="none").mean(dim=-1).sum()
        items = count(targets)
        return {
            "loss": loss,
            "count": items,
            "target_std": spread(targets) * items,
            "prediction_std": spread(predictions.detach()) * items,
        }

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """Mean of the normalised outputs of the teacher's top blocks, once more normalised if so chosen: (M, D)."""
        layers = self.teacher(batch["image"], layers=self.layers).layers
        hidden = [normalised(self.teacher.patches(layer)[batch["hidden"]]) for layer in layers]
        mean = torch.stack(hidden).mean(dim=0)
        return normalised(mean) if self.norm_targets else mean

    def predictions(self, batch: Batch) -> Tensor:
        """What the student makes of the hidden patches, (M, D)."""
        tokens = self.backbone(batch["image"], batch["hidden"]).tokens
        return self.lm_head(self.backbone.norm(self.backbone.patches(tokens)[batch["hidden"]])).float()

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Let the teacher follow, in fp32."""
        self.steps_done += 1
        decay = self.decay.end
        if self.decay.ramp or self.decay.constant_share:  # reading the counter makes the host wait for a GPU
            done = int(self.steps_done)
            decay = self.decay.at(done - 1, steps=round(done / progress))
        teacher: list[Tensor] = list(self.teacher.parameters())
        student: list[Tensor] = list(self.backbone.parameters())
        torch._foreach_lerp_(teacher, student, 1 - decay)

    def pictures(self, batch: Batch) -> dict[str, np.ndarray]:
        """Image, and its hidden patches (B, g, g)."""
        grid = (self.backbone.grid, self.backbone.grid)
        return arrays({"image": batch["image"]}) | {"hidden": batch["hidden"].unflatten(1, grid).cpu().numpy()}


def normalised(features: Tensor) -> Tensor:
    """Mean 0 and deviation 1 along the width, in fp32; no parameters, epsilon 1e-5."""
    return F.layer_norm(features.float(), features.shape[-1:])


def spread(features: Tensor) -> Tensor:
    """Deviation over the patches, mean over the width: towards 0 the representation collapses."""
    return features.std(dim=0, correction=0).mean()
