"""One optimiser step: gradients of the mean over a whole global batch, however it is cut into parts."""

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
from bench.training.ema import AveragedWeights
from bench.training.optim import UNDECAYED, Rates, build, parameter_groups, set_rates

log = logging.getLogger(__name__)


class Done(NamedTuple):
    """What a step leaves to be recorded; tensors stay on the device."""

    names: tuple[str, ...]  # of the sums
    sums: Tensor  # over the global batch
    norm: Tensor  # of the gradient, before clipping
    rates: Rates


class Update:
    """An objective with all that changes it: optimiser, gradient scaler, averaged weights.

    The recipe is the stage's; a global batch comes as a list of micro-batches on each process.
    """

    def __init__(
        self, stage: Stage, objective: Objective, *, accelerator: Accelerator, steps: int, steps_per_epoch: int
    ) -> None:
        assert stage.recipe is not None, "an evaluation is not trained"
        self.stage, self.recipe, self.objective, self.accelerator = stage, stage.recipe, objective, accelerator
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        self.model: nn.Module = objective
        replace_dropouts(objective)
        # BEiT's segmentation code decays the embeddings, too (B: layer_decay_optimizer_constructor.py).
        groups = parameter_groups(objective, self.recipe, undecayed=() if stage.model.decoder else UNDECAYED)
        self.parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = build(groups, self.recipe, accelerator.device)
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=self.recipe.precision == "fp16")
        self.average: AveragedWeights | None = None

    def wrap(self, settings: Settings) -> None:
        """Have the objective checkpointed, compiled and connected with the other processes, as the settings say."""
        if settings.gradient_checkpointing:
            _checkpoint_gradients(self.objective)
        if settings.compile:
            self.objective.compile()
        self._share_batch_norms(settings)
        self.model = self.accelerator.prepare_model(self.objective)
        if self.recipe.model_ema:  # only now: DDP gives the parameters other memory
            self.average = AveragedWeights(self.objective, self.recipe.model_ema)

    def _share_batch_norms(self, settings: Settings) -> None:
        """Batch norms of a decoder see what all processes hold at once, which may be less than a batch."""
        processes, whole = self.accelerator.num_processes, self.recipe.batch_size
        if not self.stage.model.decoder:
            return
        if processes > 1:
            sync_batch_norms(self.objective, self.accelerator.device)
        held = (settings.micro_batch_size or whole) * processes
        if held < whole and any(isinstance(layer, nn.BatchNorm2d) for layer in self.objective.modules()):
            log.warning("batch norm sees %d images at once and not %d, which changes what is learned", held, whole)

    def __call__(self, step: int, micro_batches: list[Batch]) -> Done:
        """Take optimiser step `step` (from 0) on this process's part of the global batch."""
        seed_all(derive(self.stage.seed, "step", step, self.accelerator.process_index))
        rates = set_rates(self.optimizer, self.recipe, step, steps=self.steps, steps_per_epoch=self.steps_per_epoch)
        names, sums = self._accumulate(step, micro_batches)
        norm = self._apply(sums[names.index("count")])
        self.objective.after_step((step + 1) / self.steps)
        if self.average:
            self.average.update()
        return Done(names, sums, norm, rates)

    def _accumulate(self, step: int, micro_batches: list[Batch]) -> tuple[tuple[str, ...], Tensor]:
        """Backward of the summed loss over the global batch size; the objective's sums over all processes."""
        found: dict[str, Tensor] = {}
        for number, micro_batch in enumerate(micro_batches, start=1):
            batch = self._prepared(step, micro_batch)
            last = number == len(micro_batches)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with autocast(self.accelerator.device, self.recipe.precision):
                    sums = self.model(batch)
                self.scaler.scale(sums["loss"].float() / self.recipe.batch_size).backward()
            found = {name: found.get(name, 0.0) + value.detach().float() for name, value in sums.items()}
        return tuple(found), self.accelerator.reduce(torch.stack(list(found.values())), reduction="sum")

    def _prepared(self, step: int, batch: Batch) -> Batch:
        """A micro-batch on the device, standardised, with all that is random about it decided by place and step."""
        seed, batch_size = self.stage.seed, self.recipe.batch_size
        seed_dropout(self.objective, seed=seed, step=step, positions=batch["position"])
        batch = move_and_normalise(batch, self.accelerator.device, self.stage.protocol)
        return self.objective.prepare(batch, seed=seed, step=step, batch_size=batch_size)

    def _apply(self, count: Tensor) -> Tensor:
        """Turn the gradients into those of the mean over `count` items, clip them, step. Returns their norm.

        Until here they are sums divided by the batch size, and DDP has averaged them over the processes.
        """
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, self.recipe.batch_size * self.accelerator.num_processes / count)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_grad or math.inf, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def weights(self) -> dict[str, Weights]:
        """What a checkpoint holds of the networks: "model", and "ema" if weights are averaged."""
        average = {"ema": self.average.weights} if self.average else {}
        return {"model": self.objective.trainable_state(), **average}

    def restore(self, weights: dict[str, Weights], optimizer: dict[str, Any], scaler: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.objective.load_trainable_state(weights["model"])
        self.optimizer.load_state_dict(optimizer)
        self.scaler.load_state_dict(scaler)
        if self.average:
            self.average.load(weights["ema"])


def _checkpoint_gradients(objective: Objective) -> None:
    """Compute the trained backbone's blocks again in the backward pass instead of keeping what they made."""
    backbone: Any = getattr(objective, "backbone", None)
    if hasattr(backbone, "gradient_checkpointing"):
        backbone.gradient_checkpointing = True
    elif hasattr(backbone, "set_grad_checkpointing"):
        backbone.set_grad_checkpointing(True)  # timm's name for it
    else:
        log.warning("%s has no blocks to compute again; gradient checkpointing is off", type(objective).__name__)
