"""Objective: the contract between a method and the training loop. Third parties import it as bench.Objective."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.models.drop_path import seed_drop_path

Batch = dict[str, Any]


class Objective(nn.Module):
    """A network and the loss it is trained with. A method subclasses it and returns it from `objective(stage, parts)`.

    To be written: `forward`. `predict` as well if the stage's network is evaluated; all other methods have defaults.
    The network that later stages start from is the attribute `backbone`, a `Backbone`.

    Batch: the values of the method's view, stacked along a first axis of B images, on the objective's device. Always
        "image"     (B, 3, H, W) float32, normalised as the task says
        "index"     (B,) int64 on the CPU, the number of each image in the data set
        "position"  (B,) int64 on the CPU, the place of each image in the global batch, 0 to batch_size - 1
    and, from bench's own views, "label" (B,), "map" (B, H, W), "hidden" (B, N) bool or "token_image" (uint8). The B
    images are a micro-batch: one process's share of a global batch of recipe.batch_size images.

    Order of calls, on every process:
        the constructor; after_warm_start(), if pretrained weights were loaded
        each step: prepare(batch), forward(batch) and backward for every micro-batch; optimiser; after_step(progress)
        evaluation, now and then: eval(), predict(batch) without gradients, train()
        the end: pictures(batch), in evaluation mode without gradients
    Before the first step, prepare and forward are also called on two images to count operations; gradients and buffers
    are restored afterwards.

    State: parameters are trained; what else must survive a restart is a buffer. Plain attributes are not saved.
    frozen: names of submodules that are neither trained nor saved, such as a teacher or a tokenizer.
    frozen_but_saved: names of submodules that are not trained but saved. Both stay in evaluation mode.

    Random draws: starting weights come from torch's global generator, seeded before the objective is built. Draws for
    an image belong in `prepare`, with generators seeded by derive(seed, "a name", step, position): then the number of
    processes and gradient accumulation change nothing. Global generators are seeded before each step on each process,
    so a draw in `forward` is repeated after a restart, but depends on the number of processes.
    """

    frozen: tuple[str, ...] = ()
    frozen_but_saved: tuple[str, ...] = ()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of a prepared micro-batch, as sums; the loop divides.

        Returns scalar tensors by name, the same names in every step:
            "loss"   summed over items (images, hidden patches, pixels), with gradients
            "count"  the number of these items; the gradient of a step is that of the total loss / the total count
                     of the global batch
            others   to be logged: sums over the same items, logged divided by the count
        Runs under autocast at the recipe's precision: losses should be computed in fp32 (`logits.float()`).
        Must use every trainable parameter, and must not change parameters.
        """
        raise NotImplementedError

    def prepare(self, batch: Batch, *, seed: int, step: int, batch_size: int) -> Batch:
        """Make a micro-batch ready for `forward` in training: all random draws for its images are made here.

        seed: of the stage. step: optimiser steps before this one. batch_size: of the global batch.
        The default draws stochastic depth; an override calls it first: batch = super().prepare(batch, ...).
        """
        seed_drop_path(self, seed=seed, step=step, positions=batch["position"], batch_size=batch_size)
        return batch

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Logits by head; "logits" are scored: (B, C) for classification, (B, C, S, S) for segmentation.

        The batch need hold nothing but "image". An objective whose image features are to be scored by nearest
        neighbours also has a method `features(batch)`, which returns (B, D).
        """
        raise NotImplementedError

    def after_warm_start(self) -> None:
        """Called once after pretrained weights were loaded into the backbone: bring copies of it up to date."""

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step: move an EMA teacher, a temperature.

        progress: the share of the stage's steps that are done, in (0, 1]. Must do the same on every process.
        """

    def pictures(self, batch: Batch) -> dict[str, np.ndarray]:
        """Arrays for the report's image grids, by name; the first axis is the images of the batch."""
        return {}

    def freeze(self) -> None:
        """Stop the gradients of everything in `frozen`. Called at the end of a constructor."""
        for name in self.frozen:
            self.get_submodule(name).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Objective:
        super().train(mode)
        for name in (*self.frozen, *self.frozen_but_saved):
            self.get_submodule(name).eval()
        return self

    def freeze_backbone(self) -> Any:
        """Stop training the backbone; it is still saved with the head. Returns the objective."""
        self.frozen_but_saved = ("backbone",)
        self.get_submodule("backbone").requires_grad_(False)
        return self.train(self.training)

    def trainable_state(self) -> dict[str, Tensor]:
        """The state dict without what is in `frozen`: what a checkpoint holds."""
        return {key: value for key, value in self.state_dict().items() if not self._is_frozen(key)}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Load what `trainable_state` returned. BenchError when names or shapes do not agree."""
        target = self.trainable_state()
        wrong = sorted(state.keys() ^ target.keys())
        wrong += [key for key in state.keys() & target.keys() if state[key].shape != target[key].shape]
        if wrong:
            raise BenchError(f"the weights do not fit this model: {', '.join(wrong[:5])} ({len(wrong)} in all)")
        self.load_state_dict(state, strict=False)  # strictly checked above; what is frozen is not in the state

    def _is_frozen(self, key: str) -> bool:
        return any(key.startswith(f"{name}.") for name in self.frozen)


def count(items: Tensor) -> Tensor:
    """The number of items along the first axis, as a scalar tensor on their device: "count" of a `forward`."""
    return torch.tensor(float(len(items)), device=items.device)


def arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Tensors as float32 NumPy arrays on the CPU."""
    return {name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items()}
