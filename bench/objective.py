"""What the loop trains: the Objective contract, and the objectives that all methods share.

Shapes: B images, N patches, D width, C classes, S side of a label map.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.backbones import CONVNET, Backbone, build, convnet
from bench.decoders import AUXILIARY_WEIGHT, UperNet
from bench.droppath import fix_drop_path
from bench.heads import ClassificationHead, LayerwiseProbe, LinearSegmentation, SetrPup
from bench.initialisation import initialise
from bench.spec import BenchError, Model, Recipe
from bench.transforms import Mixer

Batch = dict[str, Any]
DECODERS: dict[str, Callable[..., nn.Module]] = {"linear": LinearSegmentation, "setr-pup": SetrPup, "upernet": UperNet}


class Objective(nn.Module):
    """A network and what it is trained to do. Subclasses have a `forward`; most have a `backbone`.

    A batch holds "image" (B, 3, H, W), standardised floats, "position" (B,), the images' places in the global batch,
    and what the method's view gave. `frozen` names submodules that are never trained and never saved, such as a
    teacher or a tokenizer; they stay in evaluation mode. So does what is in `still`, which is saved.
    """

    frozen: tuple[str, ...] = ()
    still: tuple[str, ...] = ()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{"loss": sum over items, "count": items, and scalars to log: sums over the same items}."""
        raise NotImplementedError

    def prepare(self, batch: Batch, *, seed: int, step: int, batch_size: int) -> Batch:
        """The micro-batch as `forward` takes it when training: what is random is decided here, image by image.

        The loop calls it before each `forward` of a training step; step counts optimiser steps, batch_size is global.
        """
        fix_drop_path(self, seed=seed, step=step, positions=batch["position"], batch_size=batch_size)
        return batch

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Logits by head; "logits" is the one to be scored, (B, C) or (B, C, S, S)."""
        raise NotImplementedError

    def started(self) -> None:
        """Called when the backbone was given weights from outside, before the first step."""

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step; progress in (0, 1] is the share of the stage that is done."""

    def pictures(self, batch: Batch) -> dict[str, np.ndarray]:
        """Arrays that a person wants to see, by name, the first axis being the images of the batch."""
        return {}

    def freeze(self) -> None:
        """Stop the gradients of everything in `frozen`. To be called at the end of a constructor."""
        for name in self.frozen:
            self.get_submodule(name).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Objective:
        super().train(mode)
        for name in (*self.frozen, *self.still):
            self.get_submodule(name).eval()
        return self

    def keep_backbone(self) -> Any:
        """From now on the backbone does not learn, but is saved with what does; returns the objective."""
        self.still = ("backbone",)
        self.get_submodule("backbone").requires_grad_(False)
        return self.train(self.training)

    def trainable_state(self) -> dict[str, Tensor]:
        """The state without what is frozen: what a checkpoint holds."""
        return {key: value for key, value in self.state_dict().items() if not self._is_frozen(key)}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Undo `trainable_state`. BenchError when names or shapes do not agree."""
        wanted = self.trainable_state()
        wrong = sorted(state.keys() ^ wanted.keys())
        wrong += [key for key in state.keys() & wanted.keys() if state[key].shape != wanted[key].shape]
        if wrong:
            raise BenchError(f"the weights do not fit this model: {', '.join(wrong[:5])} ({len(wrong)} in all)")
        self.load_state_dict(state, strict=False)

    def _is_frozen(self, key: str) -> bool:
        return any(key.startswith(f"{name}.") for name in self.frozen)


class Loss(NamedTuple):
    """Classification loss of (B, C) logits, summed over images."""

    kind: str = "softmax"  # or sigmoid: one yes-or-no question per class, their losses added (big_vision losses.py)
    smoothing: float = 0.0

    def target(self, labels: Tensor, classes: int) -> Tensor:
        """Smoothed one-hot targets (B, C) of labels (B,)."""
        return F.one_hot(labels, classes) * (1 - self.smoothing) + self.smoothing / classes

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        logits = logits.float()
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
        """How many are right, unless the images are mixed and no answer is simply right."""
        return {} if "target" in batch else {"accuracy": (logits.argmax(-1) == batch["label"]).float().sum()}

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """What the head's classifier reads of each image, (B, D): for nearest neighbours."""
        return self.head.features(self.backbone.norm(self.backbone(batch["image"]).tokens))

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, np.ndarray]:
        """Image, label, prediction, and the attention (B, g, g) of the last block's class token, if there is one."""
        seen = {"image": batch["image"], "label": batch["label"]}
        seen["prediction"] = self.predict(batch)["logits"].argmax(-1)
        if isinstance(self.backbone, Backbone):
            attention = self.backbone.attention_map(batch["image"]).mean(dim=1)
            seen["attention"] = attention.unflatten(1, (self.backbone.grid, self.backbone.grid))
        return arrays(seen)


class LinearProbe(Classify):
    """Linear classifiers on a backbone that does not learn: how much of the classes its features already tell.

    One per block, trained together, as BEiT run_linear_eval.py does. The backbone is in evaluation mode and is saved
    with the classifiers.
    """

    def __init__(self, backbone: Backbone, head: LayerwiseProbe, *, classes: int) -> None:
        super().__init__(backbone, head, classes=classes, loss=Loss())
        self.keep_backbone()

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return self.head(self._layers(batch))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        outputs, target = self.predict(batch), self.target(batch)
        every = [self.loss(logits, target) for name, logits in outputs.items() if name != "logits"]
        return {"loss": torch.stack(every).sum(), "count": count(target)} | self.scalars(outputs["logits"], batch)

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        return self.head.features(self._layers(batch)[self.head.layer - 1])

    @torch.no_grad()
    def _layers(self, batch: Batch) -> tuple[Tensor, ...]:
        return self.backbone(batch["image"], layers=range(self.backbone.depth)).layers


class Segment(Objective):
    """Learn a label per pixel. A batch holds "map" (B, S, S); pixels of `ignore_label` count for nothing.

    decoder: reads the patches after the blocks that its `taps` number; see heads.py and decoders.py.
    """

    backbone: Backbone
    decoder: Any

    def __init__(self, backbone: Backbone, decoder: nn.Module, *, ignore_label: int) -> None:
        super().__init__()
        self.backbone, self.decoder, self.ignore_label = backbone, decoder, ignore_label

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        layers = self.backbone(batch["image"], layers=self.decoder.taps).layers
        return self.decoder(*(self.backbone.patches(tokens) for tokens in layers))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The mean is over all pixels, also the ignored ones: mmsegmentation 0.11, losses/cross_entropy_loss.py.

        "pixel_accuracy" is a share of the same pixels.
        """
        outputs, labels = self.predict(batch), batch["map"].long()
        loss = self._loss(outputs["logits"], labels)
        if "auxiliary" in outputs:
            loss = loss + AUXILIARY_WEIGHT * self._loss(outputs["auxiliary"], labels)
        right = outputs["logits"].argmax(1) == labels
        everywhere = torch.tensor(float(labels.numel()), device=labels.device)
        return {"loss": loss, "count": everywhere, "pixel_accuracy": right.sum().float()}

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, ignore_index=self.ignore_label, reduction="sum")

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, np.ndarray]:
        """Image, map and prediction (B, S, S)."""
        parts = batch["image"].split(4)  # logits of all of them at once would be large
        prediction = torch.cat([self.predict({"image": part})["logits"].argmax(1) for part in parts])
        return arrays({"image": batch["image"], "map": batch["map"], "prediction": prediction})


def count(items: Tensor) -> Tensor:
    """How many items there are along the first axis, as a scalar on their device."""
    return torch.tensor(float(len(items)), device=items.device)


def arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Tensors as NumPy arrays on the CPU."""
    return {name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items()}


def mixer(recipe: Recipe, classes: int) -> Mixer | None:
    """Mixup and CutMix, when the recipe has either."""
    return Mixer(recipe, classes) if recipe.mixup or recipe.cutmix else None


def classify(
    model: Model, recipe: Recipe, *, style: str | None = None, bias: float = 0.0, representation: bool = False
) -> Classify:
    """The classifier of a stage, from its starting weights: supervised learning, fine-tuning, or a teacher.

    style: of the starting weights; by default the fine-tuning style of the trunk's authors.
    bias, representation: of the head, see ClassificationHead.
    """
    loss, mixing = Loss(recipe.loss, recipe.label_smoothing), mixer(recipe, model.classes)
    if model.trunk.startswith(CONVNET):
        return Classify(convnet(model, recipe), None, classes=model.classes, loss=loss, mixer=mixing)
    backbone = _trunk(model, recipe, norm=recipe.pool == "token", style=style)
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
    found = Classify(backbone, head, classes=model.classes, loss=loss, mixer=mixing)
    return found.keep_backbone() if recipe.freeze else found


def segment(model: Model, recipe: Recipe, *, ignore_label: int) -> Segment:
    """The segmentation network of a stage, with the decoder that `model.decoder` names."""
    if model.decoder not in DECODERS:
        raise BenchError(f"segmentation needs model.decoder, one of {', '.join(DECODERS)}, not {model.decoder!r}")
    backbone = _trunk(model, recipe, norm=False)
    shape: dict[str, Any] = {"size": model.image_size, "depth": model.depth}
    if model.decoder != "linear":
        shape["patch_size"] = model.patch_size
    decoder = DECODERS[model.decoder](model.width, model.classes, **shape)
    found = Segment(backbone, decoder, ignore_label=ignore_label)
    return found.keep_backbone() if recipe.freeze else found


def probe(model: Model, *, layer: int = 0) -> LinearProbe:
    """Linear classifiers on every block; the one scored is on block `layer`, by default three quarters up (P-BEiT)."""
    layer = layer or math.ceil(0.75 * model.depth)
    if not 1 <= layer <= model.depth:
        raise BenchError(f"probe.options.layer = {layer}: the backbone has blocks 1 to {model.depth}")
    backbone = build(model, norm=False)
    head = LayerwiseProbe(
        model.width, model.classes, depth=model.depth, layer=layer, prefix_tokens=backbone.prefix_tokens
    )
    return LinearProbe(backbone, head, classes=model.classes)


def _trunk(model: Model, recipe: Recipe, *, norm: bool, style: str | None = None) -> Backbone:
    backbone = build(model, recipe, norm=norm)
    initialise(backbone, style or ("beit-finetune" if model.trunk == "beit" else "deit"), model.init_std)
    return backbone
