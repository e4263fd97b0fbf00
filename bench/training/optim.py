"""The optimiser and its parameter groups: layer-wise learning-rate decay, and what has no weight decay."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import nn

from bench.config.schema import Recipe
from bench.errors import BenchError
from bench.training.schedule import learning_rate, peak, weight_decay

UNDECAYED = ("cls_token", "pos_embed")  # BEiT, data2vec and DeiT; mask_token, dist_token and bias tables do decay
STEM = re.compile(r"(cls_token|dist_token|mask_token|pos_embed|patch_embed\..*)")
BLOCK = re.compile(r"blocks\.(\d+)\.")


class Rates(NamedTuple):
    """What one step uses, before the layer-wise factor."""

    lr: float
    weight_decay: float


def layer_of(name: str, depth: int) -> int:
    """Layer of a parameter for layer-wise decay: 0 embeddings, i + 1 block i, depth + 1 everything after.

    A position bias shared by all blocks belongs to none of them and counts as everything after, at the full
    rate. Source: BEiT optim_factory.py, get_num_layer_for_vit.
    """
    inner = name.removeprefix("backbone.")
    if inner == name:
        return depth + 1  # a head
    if STEM.fullmatch(inner):
        return 0
    block = BLOCK.match(inner)
    return int(block.group(1)) + 1 if block else depth + 1


def decays(name: str, parameter: nn.Parameter, undecayed: Collection[str] = UNDECAYED) -> bool:
    """Whether weight decay applies: not to vectors, biases and the named embeddings of the backbone."""
    return parameter.ndim > 1 and not name.endswith(".bias") and name.removeprefix("backbone.") not in undecayed


def parameter_groups(
    objective: nn.Module, recipe: Recipe, *, undecayed: Collection[str] = UNDECAYED
) -> list[dict[str, Any]]:
    """The trainable parameters in groups of equal rate and decay, in the order in which they first occur.

    A group has `params`, `names`, `name`, `lr_scale`, `decay` and `weight_decay`. BEiT's segmentation code decays
    cls_token and pos_embed as well: there `undecayed` is empty.
    """
    depth = _depth(objective, recipe)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = decays(name, parameter, undecayed)
        label, scale = "decay" if decay else "no_decay", 1.0
        if recipe.layer_decay < 1:
            layer = layer_of(name, depth)
            label, scale = f"layer_{layer}_{label}", recipe.layer_decay ** (depth + 1 - layer)
        empty = {"params": [], "names": [], "name": label, "lr_scale": scale, "decay": decay}
        group = groups.setdefault(label, {**empty, "weight_decay": recipe.weight_decay if decay else 0.0})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _depth(objective: nn.Module, recipe: Recipe) -> int:
    """Blocks of the backbone; needed only when layers have rates of their own."""
    depth = getattr(getattr(objective, "backbone", None), "depth", 0)
    if recipe.layer_decay < 1 and not depth:
        raise BenchError(f"layer_decay = {recipe.layer_decay} needs a transformer backbone; set it to 1 for this model")
    return depth


def build_optimizer(groups: list[dict[str, Any]], recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser over `groups`, fused where the device has such a kernel (3 times faster on the CPU)."""
    fused = device.type in ("cpu", "cuda")
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=peak(recipe), momentum=recipe.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=peak(recipe), betas=recipe.betas, eps=recipe.eps, fused=fused)


def set_rates(
    optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, *, steps: int, steps_per_epoch: int
) -> Rates:
    """Give every group the learning rate and weight decay of step `step`; return them unscaled."""
    rates = Rates(
        learning_rate(recipe, step, steps=steps, steps_per_epoch=steps_per_epoch),
        weight_decay(recipe, step, steps=steps),
    )
    for group in optimizer.param_groups:
        group["lr"] = rates.lr * group["lr_scale"]
        group["weight_decay"] = rates.weight_decay if group["decay"] else 0.0
    return rates
