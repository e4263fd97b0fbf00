"""Objective: the contract between a method and the training loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.models.drop_path import fix_drop_path

Batch = dict[str, Any]


class Objective(nn.Module):
    """A network and what it is trained to do. Subclasses have a `forward`; most have a `backbone`.

    A batch holds "image" (B, 3, H, W), standardised floats, "position" (B,), the images' places in the global batch,
    and what the method's view gave. `frozen` names submodules that are never trained and never saved, such as a
    teacher or a tokenizer; they stay in evaluation mode. So does what is in `frozen_but_saved`, which is saved.
    """

    frozen: tuple[str, ...] = ()
    frozen_but_saved: tuple[str, ...] = ()

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
        for name in (*self.frozen, *self.frozen_but_saved):
            self.get_submodule(name).eval()
        return self

    def freeze_backbone(self) -> Any:
        """From now on the backbone does not learn, but is saved with what does; returns the objective."""
        self.frozen_but_saved = ("backbone",)
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


def count(items: Tensor) -> Tensor:
    """How many items there are along the first axis, as a scalar on their device."""
    return torch.tensor(float(len(items)), device=items.device)


def arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Tensors as NumPy arrays on the CPU."""
    return {name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items()}
