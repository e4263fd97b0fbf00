"""data2vec: predict, from an image with hidden patches, the features that an EMA teacher has of the whole image.

P-d2v = arXiv 2202.03555. Numbers and sources: data2vec.toml.
Shapes: B images, N patches, D width, M hidden patches in the whole batch.

Departs from the reference: the average is over parameters only; the authors' also averages, and truncates, an integer
index buffer. Golden g02 checks the objective, g05 the decay.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.config.stage import Stage
from bench.errors import BenchError
from bench.methods import Parts, View
from bench.methods.masked_images import HidingView, Recover, masking
from bench.methods.objective import Batch, Objective, count
from bench.models.backbone import Backbone, build
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
        build(stage.model, stage.recipe, mask_token=True),
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
    """The last blocks, numbered from 0, whose outputs are the targets. top: a share of all (below 1) or a count."""
    count = max(1, round(top * depth)) if top < 1 else round(top)
    if not 0 < top <= depth:
        raise BenchError(f"pretrain.options.top_layers = {top:g}: the backbone has 1 to {depth} blocks to predict")
    return tuple(range(depth - count, depth))


@dataclass(frozen=True, slots=True)
class Decay:
    """EMA decay of the teacher, by step.

    Constant at `end`, or first rising to it from `start`, linearly over `ramp`, a share of the training. In the last
    share `constant_share` it is 1, so the teacher stays: there the authors' tri-phase schedule lets the learning rate
    fall.
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
        ramp, per_epoch = round(self.ramp * steps, 6), steps / self.epochs  # a ramp of whole steps stays one
        if step // per_epoch * per_epoch >= ramp:
            return self.end
        return self.start + min(step, math.ceil(ramp) - 1) * (self.end - self.start) / ramp


class PredictTeacher(Recover):
    """Smooth L1 between the student's predictions and the mean of the teacher's top layers, at hidden patches.

    The teacher sees the whole image. It is saved with the student: a stage that resumes needs it.
    Source: data2vec modeling_cyclical.py and engine_for_cyclical.py.
    """

    frozen_but_saved = ("teacher",)
    teacher: Backbone
    steps_done: Tensor

    def __init__(
        self, backbone: Backbone, *, layers: Sequence[int], beta: float, norm_targets: bool, decay: Decay
    ) -> None:
        super().__init__(backbone, backbone.width)
        self.teacher = copy.deepcopy(backbone).requires_grad_(False).eval()
        self.layers, self.beta, self.norm_targets, self.decay = layers, beta, norm_targets, decay
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))

    def after_warm_start(self) -> None:
        self.teacher.load_state_dict(self.backbone.state_dict())

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        targets, predictions = self.targets(batch), self.predictions(batch)  # (M, D)
        loss = F.smooth_l1_loss(predictions, targets, beta=self.beta, reduction="none").mean(dim=-1).sum()
        items = count(targets)
        return {
            "loss": loss,
            "count": items,
            "target_std": feature_std(targets) * items,
            "prediction_std": feature_std(predictions.detach()) * items,
        }

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """Mean of the normalised outputs of the teacher's top blocks, normalised again if `norm_targets`: (M, D)."""
        layers = self.teacher(batch["image"], layers=self.layers).layers
        hidden = [normalise(self.teacher.patches(layer)[batch["hidden"]]) for layer in layers]
        mean = torch.stack(hidden).mean(dim=0)
        return normalise(mean) if self.norm_targets else mean

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Update the EMA teacher, in fp32: parameters are, under autocast too."""
        self.steps_done += 1
        decay = self.decay.end
        if self.decay.ramp or self.decay.constant_share:  # only then: reading the counter makes the host wait for a GPU
            done = int(self.steps_done)
            decay = self.decay.at(done - 1, steps=round(done / progress))
        teacher: list[Tensor] = list(self.teacher.parameters())
        student: list[Tensor] = list(self.backbone.parameters())
        torch._foreach_lerp_(teacher, student, 1 - decay)


def normalise(features: Tensor) -> Tensor:
    """Layer norm without parameters, in fp32, epsilon 1e-5."""
    return F.layer_norm(features.float(), features.shape[-1:])


def feature_std(features: Tensor) -> Tensor:
    """Standard deviation over the patches, mean over the width; near 0 the representation has collapsed."""
    return features.std(dim=0, correction=0).mean()
