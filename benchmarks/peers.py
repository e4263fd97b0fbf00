"""What one would otherwise run: a plain training loop for each of our methods, with the libraries' own networks.

All use torch's default AdamW, and the precision, shape, dropout, stochastic depth, mixing and clipping of our stage.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.layers import set_fused_attn
from timm.loss import SoftTargetCrossEntropy
from timm.task import TokenDistillationTask
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from transformers import BeitConfig, BeitForMaskedImageModeling, BeitModel, ViTConfig, ViTForImageClassification

from bench.config.stage import Stage
from bench.launch.distributed import autocast
from bench.methods import Parts
from bench.methods.data2vec import target_layers
from bench.pipeline.dataloader import Batch
from bench.pipeline.transforms import to_unit

Step = Callable[[], object]


class Peer(NamedTuple):
    """The other side of a pair: what it is, and how to build its step for a batch that is on the device."""

    title: str
    step: Callable[[Stage, Parts, Batch], Step]


def supervised(stage: Stage, parts: Parts, batch: Batch) -> Step:
    """transformers' classifier and its own loss."""
    model = ViTForImageClassification(ViTConfig(**shape(stage), num_labels=stage.model.classes))
    return plain(model, lambda: model(pixel_values=batch["image"], labels=batch["label"]).loss, stage, batch)


def distilled(stage: Stage, parts: Parts, batch: Batch) -> Step:
    """timm's distilled DeiT, task, mixing and averaged weights, with the same convolutional teacher."""
    recipe, size, device = stage.recipe, stage.model, batch["image"].device
    set_fused_attn(True)  # timm's default, which `connect` changes on a CPU
    student = timm.create_model(
        "deit_base_distilled_patch16_224",
        img_size=size.image_size,
        patch_size=size.patch_size,
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.heads,
        num_classes=size.classes,
        drop_path_rate=recipe.drop_path,
    ).to(device)
    task = TokenDistillationTask(
        student,
        parts["teacher"].backbone.to(device),
        criterion=SoftTargetCrossEntropy(),
        distill_type="hard",
        task_loss_weight=1 - float(stage.options["alpha"]),
        device=device,
        verbose=False,
    )
    mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=size.classes)
    average = ModelEmaV3(student, decay=recipe.model_ema)

    def loss() -> Tensor:
        return task(*mixup(batch["image"].clone(), batch["label"]))["loss"]  # it mixes in place

    return plain(student, loss, stage, batch, after=lambda: average.update(student))


def words(stage: Stage, parts: Parts, batch: Batch) -> Step:
    """transformers' BEiT, which computes the logits of every patch; the words are the same tokenizer's."""
    tokenizer = parts["tokenizer"].tokenizer.to(batch["image"].device).eval()
    model = BeitForMaskedImageModeling(hiding(stage, vocab_size=tokenizer.vocab_size))
    hidden = batch["hidden"]

    def loss() -> Tensor:
        labels = tokenizer.encode(to_unit(batch["token_image"]))[hidden]
        return model(pixel_values=batch["image"], bool_masked_pos=hidden, labels=labels).loss

    return plain(model, loss, stage, batch)


def teacher(stage: Stage, parts: Parts, batch: Batch) -> Step:
    """data2vec as its authors run it: teacher in fp32, targets of every patch, its average tensor by tensor."""
    model = BeitModel(hiding(stage, use_mean_pooling=False), add_pooling_layer=False)
    student = nn.ModuleDict({"backbone": model, "head": nn.Linear(stage.model.width, stage.model.width)})
    slow = copy.deepcopy(model).eval().to(batch["image"].device)
    layers = target_layers(stage.model.depth, float(stage.options["top_layers"]))
    image, hidden, decay = batch["image"], batch["hidden"], float(stage.options["decay"])

    @torch.no_grad()
    def targets() -> Tensor:
        with torch.autocast(image.device.type, enabled=False):
            states = slow(image, output_hidden_states=True).hidden_states
        mean = torch.stack([normalise(states[layer + 1][:, 1:]) for layer in layers]).mean(dim=0)
        return normalise(mean)[hidden]

    def loss() -> Tensor:
        tokens = model(image, bool_masked_pos=hidden).last_hidden_state[:, 1:]
        predicted = student["head"](tokens[hidden]).float()
        return F.smooth_l1_loss(predicted, targets(), beta=float(stage.options["beta"]))

    @torch.no_grad()
    def follow() -> None:
        weights = model.state_dict()
        for name, value in slow.state_dict().items():
            value.copy_(decay * value + (1 - decay) * weights[name])

    return plain(student, loss, stage, batch, after=follow)


PEERS = {
    "vit": Peer("transformers, ViTForImageClassification", supervised),
    "deit": Peer("timm, TokenDistillationTask", distilled),
    "beit": Peer("transformers, BeitForMaskedImageModeling", words),
    "data2vec": Peer("transformers, BeitModel, loop as the authors'", teacher),
}


def plain(
    model: nn.Module, loss: Callable[[], Tensor], stage: Stage, batch: Batch, after: Callable[[], object] | None = None
) -> Step:
    """A step as in most training scripts; `after` follows the optimiser's."""
    recipe, device = stage.recipe, batch["image"].device
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=recipe.betas, weight_decay=recipe.weight_decay)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(device, recipe.precision):
            value = loss()
        value.backward()
        if recipe.clip_grad:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
        optimizer.step()
        if after:
            after()

    return step


def shape(stage: Stage) -> dict[str, Any]:
    """The numbers of a network of transformers, with the stage's shape and dropout."""
    model, recipe = stage.model, stage.recipe
    return {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": 4 * model.width,
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "hidden_dropout_prob": recipe.dropout,
        "attention_probs_dropout_prob": recipe.attn_dropout,
    }


def hiding(stage: Stage, **own: Any) -> BeitConfig:
    """The same for a network some of whose patches are hidden."""
    return BeitConfig(
        **shape(stage),
        use_mask_token=True,
        use_absolute_position_embeddings=stage.model.position == "absolute",
        use_shared_relative_position_bias=stage.model.position == "shared-relative",
        layer_scale_init_value=stage.model.layer_scale,
        drop_path_rate=stage.recipe.drop_path,
        **own,
    )


def normalise(features: Tensor) -> Tensor:
    """Mean 0 and deviation 1 along the width."""
    return F.layer_norm(features.float(), features.shape[-1:])
