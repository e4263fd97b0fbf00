"""Learning rate and weight decay as pure functions of the step."""

from __future__ import annotations

import math

from bench.config.schema import Recipe
from bench.errors import BenchError


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
        factor = (1 - step / steps) ** recipe.schedule_power
        return ((high - low) * factor + low) * _ramp(step, warmup, recipe.warmup_lr / high)
    if step < warmup:
        return recipe.warmup_lr + (high - recipe.warmup_lr) * step / max(warmup - 1, 1)
    if recipe.schedule == "constant":
        return high
    if recipe.schedule == "tri-phase":
        return high + (low - high) * _cooldown_progress(step, steps, recipe.cooldown_fraction)
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


def _cooldown_progress(step: int, steps: int, fraction: float) -> float:
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
