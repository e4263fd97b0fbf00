"""One optimiser step: gradients of the mean over a global batch, however it is split into micro-batches."""

from __future__ import annotations

import logging
import math
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bench.checkpoints.weights import Weights
from bench.config.stage import Stage
from bench.launch.distributed import autocast
from bench.launch.settings import Settings
from bench.methods.objective import Objective
from bench.models.dropout import replace_dropouts, seed_dropout
from bench.models.sync_batchnorm import sync_batch_norms
from bench.pipeline.dataloader import Batch, move_and_normalise
from bench.seeding import derive, seed_all
from bench.training.ema import WeightEma
from bench.training.optim import UNDECAYED, Rates, build_optimizer, parameter_groups, set_rates

log = logging.getLogger(__name__)


class StepResult(NamedTuple):
    """What a step leaves to be recorded; tensors stay on the device."""

    names: tuple[str, ...]  # of the sums
    sums: Tensor  # over the global batch
    norm: Tensor  # of the gradient, before clipping
    rates: Rates


class Update:
    """An objective with all that changes it: optimiser, gradient scaler, EMA of the weights.

    The recipe is the stage's; a global batch comes as a list of micro-batches on each process.
    """

    def __init__(
        self,
        stage: Stage,
        objective: Objective,
        *,
        accelerator: Accelerator,
        settings: Settings,
        steps: int,
        steps_per_epoch: int,
    ) -> None:
        assert stage.recipe is not None, "an evaluation is not trained"
        self.stage, self.recipe, self.objective, self.accelerator = stage, stage.recipe, objective, accelerator
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        replace_dropouts(objective)
        # BEiT's segmentation code decays the embeddings, too (B: layer_decay_optimizer_constructor.py).
        groups = parameter_groups(objective, self.recipe, undecayed=() if stage.model.decoder else UNDECAYED)
        self.parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = build_optimizer(groups, self.recipe, accelerator.device)
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=self.recipe.precision == "fp16")
        self.model = _wrap(objective, stage, accelerator, settings)
        # Only now: DDP gives the parameters other memory, and the average follows the tensors it was made from.
        self.average = WeightEma(objective, self.recipe.model_ema) if self.recipe.model_ema else None

    def __call__(self, step: int, micro_batches: list[Batch]) -> StepResult:
        """Take optimiser step `step` (from 0) on this process's part of the global batch.

        The loss that is differentiated is the summed loss over the global batch size; `_apply` corrects for the number
        of items, which is known only after the last micro-batch.
        """
        seed_all(derive(self.stage.seed, "step", step, self.accelerator.process_index))
        rates = set_rates(self.optimizer, self.recipe, step, steps=self.steps, steps_per_epoch=self.steps_per_epoch)
        totals: dict[str, Tensor] = {}
        for number, micro_batch in enumerate(micro_batches, start=1):
            batch = self._prepare(step, micro_batch)
            # Gradients of all micro-batches are exchanged once, in the backward pass of the last.
            with nullcontext() if number == len(micro_batches) else self.accelerator.no_sync(self.model):
                with autocast(self.accelerator.device, self.recipe.precision):
                    sums = self.model(batch)
                self.scaler.scale(sums["loss"].float() / self.recipe.batch_size).backward()
            totals = {name: totals.get(name, 0.0) + value.detach().float() for name, value in sums.items()}
        names = tuple(totals)
        step_sums = self.accelerator.reduce(torch.stack(list(totals.values())), reduction="sum")
        norm = self._apply(step_sums[names.index("count")])
        self.objective.after_step((step + 1) / self.steps)
        if self.average:
            self.average.update()
        return StepResult(names, step_sums, norm, rates)

    def _prepare(self, step: int, batch: Batch) -> Batch:
        """A micro-batch on the device, normalised; every random draw of its forward pass seeded by image and step."""
        seed, batch_size = self.stage.seed, self.recipe.batch_size
        seed_dropout(self.objective, seed=seed, step=step, positions=batch["position"])
        batch = move_and_normalise(batch, self.accelerator.device, self.stage.protocol)
        return self.objective.prepare(batch, seed=seed, step=step, batch_size=batch_size)

    def _apply(self, count: Tensor) -> Tensor:
        """Turn the gradients into those of the mean over `count` items, clip them, step. Returns their norm.

        Until here they are sums divided by the batch size, and DDP has averaged them over the processes.
        """
        self.scaler.unscale_(self.optimizer)  # clipping needs the true norm
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, self.recipe.batch_size * self.accelerator.num_processes / count)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_grad or math.inf, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def weights(self) -> dict[str, Weights]:
        """What a checkpoint holds of the networks: "model", and "ema" if the recipe has an EMA."""
        ema = {"ema": self.average.weights} if self.average else {}
        return {"model": self.objective.trainable_state(), **ema}

    def restore(self, weights: dict[str, Weights], optimizer: dict[str, Any], scaler: dict[str, Any]) -> None:
        """Load the state of a checkpoint."""
        self.objective.load_trainable_state(weights["model"])
        self.optimizer.load_state_dict(optimizer)
        self.scaler.load_state_dict(scaler)
        if self.average:
            self.average.load(weights["ema"])


def _wrap(objective: Objective, stage: Stage, accelerator: Accelerator, settings: Settings) -> nn.Module:
    """Apply gradient checkpointing, compilation, sync batch norm and DDP as the settings say. Returns what to call."""
    if settings.gradient_checkpointing:
        _checkpoint_gradients(objective)
    if settings.compile:
        objective.compile()
    if stage.model.decoder:
        _sync_batch_norms(objective, stage, accelerator, settings)
    return accelerator.prepare_model(objective)


def _sync_batch_norms(objective: Objective, stage: Stage, accelerator: Accelerator, settings: Settings) -> None:
    """Use sync batch norm in a decoder, and warn when it sees less than the global batch at once."""
    assert stage.recipe is not None, "an evaluation is not trained"
    processes, batch_size = accelerator.num_processes, stage.recipe.batch_size
    if processes > 1:
        sync_batch_norms(objective, accelerator.device)
    images = (settings.micro_batch_size or batch_size) * processes
    if images < batch_size and any(isinstance(layer, nn.BatchNorm2d) for layer in objective.modules()):
        log.warning("batch norm sees %d images at once and not %d, which changes what is learned", images, batch_size)


def _checkpoint_gradients(objective: Objective) -> None:
    """Switch on gradient checkpointing of the backbone: its blocks are recomputed in the backward pass."""
    backbone: Any = getattr(objective, "backbone", None)
    if hasattr(backbone, "gradient_checkpointing"):
        backbone.gradient_checkpointing = True
    elif hasattr(backbone, "set_grad_checkpointing"):
        backbone.set_grad_checkpointing(True)  # timm's name for it
    else:
        log.warning(
            "%s has no transformer blocks to recompute; gradient checkpointing is off", type(objective).__name__
        )
