"""Learning rate and weight decay as pure functions of the step; the authors' parameter groups; the optimiser.

Checked against the authors' numbers: schedules (golden g05), groups and layer-wise decay (golden g04).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import nn

from bench.spec import BenchError, Recipe

UNDECAYED = ("cls_token", "pos_embed")  # BEiT, data2vec and DeiT; mask_token, dist_token and bias tables do decay
STEM = re.compile(r"(cls_token|dist_token|mask_token|pos_embed|patch_embed\..*)")
BLOCK = re.compile(r"blocks\.(\d+)\.")


class Rates(NamedTuple):
    """What one step uses, before the layer-wise factor."""

    lr: float
    weight_decay: float


def peak(recipe: Recipe) -> float:
    """The highest learning rate: linear in the batch where the recipe names a reference batch (DeiT, MAE)."""
    return recipe.lr * recipe.batch_size / recipe.lr_reference_batch if recipe.lr_reference_batch else recipe.lr


def learning_rate(recipe: Recipe, step: int, *, steps: int, steps_per_epoch: int) -> float:
    """The learning rate of step `step` (from 0) of `steps`, before the layer-wise factor.

    cosine: `warmup` points up to the peak, both ends included, then half a cosine whose end lies one step
    after the last; BEiT utils.py, cosine_scheduler. cosine-per-epoch: constant in an epoch; DeiT main.py with
    timm's scheduler. linear: to min_lr, warm-up as a factor on top; mmcv's poly policy, its power schedule_power.
    tri-phase: the peak until cooldown_fraction of the steps is left, then straight to min_lr, both ends included;
    data2vec utils.py, tri_phase_scheduler. `min_lr` and `warmup_lr` do not scale with the batch.
    """
    if recipe.schedule == "cosine-per-epoch":
        return _cosine_per_epoch(recipe, step // steps_per_epoch)
    warmup = _warmup_steps(recipe, steps, steps_per_epoch)
    high, low = peak(recipe), recipe.min_lr
    if recipe.schedule == "linear":
        left = (1 - step / steps) ** recipe.schedule_power
        return ((high - low) * left + low) * _ramp(step, warmup, recipe.warmup_lr / high)
    if step < warmup:
        return recipe.warmup_lr + (high - recipe.warmup_lr) * step / max(warmup - 1, 1)
    if recipe.schedule == "constant":
        return high
    if recipe.schedule == "tri-phase":
        return high + (low - high) * _cooled(step, steps, recipe.cooldown_fraction)
    return _cosine(high, low, (step - warmup) / (steps - warmup))


def weight_decay(recipe: Recipe, step: int, *, steps: int) -> float:
    """The weight decay of step `step`: constant, or half a cosine to `weight_decay_end` (BEiT utils.py)."""
    if recipe.weight_decay_end is None:
        return recipe.weight_decay
    return _cosine(recipe.weight_decay, recipe.weight_decay_end, step / steps)


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


def _ramp(step: int, warmup: int, start: float) -> float:
    """Factor rising from `start` at step 0 to 1 at step `warmup`."""
    return 1 - (1 - step / warmup) * (1 - start) if step < warmup else 1.0


def _cooled(step: int, steps: int, fraction: float) -> float:
    """How far the rate has fallen in the last `fraction` of the steps: from 0 in their first to 1 in the last."""
    falling = int(fraction * steps)
    return max(step - (steps - falling), 0) / max(falling - 1, 1)


def _warmup_steps(recipe: Recipe, steps: int, steps_per_epoch: int) -> int:
    warmup = recipe.warmup_steps or round(recipe.warmup_epochs * steps_per_epoch)
    if warmup >= steps and recipe.schedule != "constant":
        raise BenchError(
            f"warm-up of {warmup} steps fills the {steps} steps of the stage; "
            f"set warmup_epochs below {steps / steps_per_epoch:g}, or warmup_steps below {steps}"
        )
    return warmup


def _cosine_per_epoch(recipe: Recipe, epoch: int) -> float:
    """DeiT steps its scheduler after each epoch, so that epoch e uses the value meant for e - 1."""
    time = max(epoch - 1, 0)
    high = peak(recipe)
    if time < recipe.warmup_epochs:
        return recipe.warmup_lr + time * (high - recipe.warmup_lr) / recipe.warmup_epochs
    return _cosine(high, recipe.min_lr, time / recipe.epochs)


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


def build(groups: list[dict[str, Any]], recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
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
