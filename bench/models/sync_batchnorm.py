"""Synchronised batch norm: statistics over the images that all processes hold at once, as the authors train.

With gradient accumulation each micro-batch has statistics of its own, as in the authors' code: `micro_batch_size`
changes what is learned here, and only here.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the images of all processes, on any device; PyTorch's in evaluation and in a single process."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized()):
            return super().forward(input)
        values, axes = input.float(), (0, 2, 3)  # sums over many pixels lose digits in half precision
        local_count = values.new_tensor([values.numel() / values.shape[1]])
        sums, count = _Sum.apply(torch.cat([values.sum(axes), local_count])).split([values.shape[1], 1])
        mean = sums / count
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum(axes)) / count
        self._update_running(mean, variance * count / (count - 1))  # the unbiased one, as PyTorch keeps it
        assert self.eps is not None
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of this step, by `momentum`."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


class _Sum(Function):
    """All-reduce by sum; the gradient is all-reduced by sum, too."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def sync_batch_norms(module: nn.Module, device: torch.device) -> None:
    """Make every BatchNorm2d inside `module` synchronised, in place; names and parameters stay."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)  # faster than ours, but only for GPUs
        return
    for layer in module.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = SyncBatchNorm2d  # keeps parameters, buffers and hooks
