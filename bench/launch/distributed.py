"""The processes and devices of a stage. accelerate places, wraps and connects; what it would decide itself is ours."""

from __future__ import annotations

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast
from timm.layers import set_fused_attn
from torch import nn

from bench.errors import BenchError
from bench.launch.settings import Settings

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def connect(settings: Settings) -> Accelerator:
    """Join the other processes of this launch. To be called before a network is built.

    BenchError when there are not as many processes as were asked for: a launcher that quietly starts one would
    otherwise only be slow, or train with another batch.
    """
    torch.set_num_threads(settings.threads)
    wrapping = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    accelerator = Accelerator(cpu=settings.device == "cpu", mixed_precision="no", kwargs_handlers=[wrapping])
    found = accelerator.num_processes
    if found != settings.num_processes:
        raise BenchError(f"{settings.num_processes} processes were asked for, {found} started; see accelerate.yaml")
    if accelerator.device.type != torch.device(settings.device).type:
        raise BenchError(f"device {settings.device!r} was asked for, torch offers {accelerator.device.type!r}")
    # On the CPU explicit attention is 1.5 times faster than the fused kernel in bf16, and its operations are counted.
    set_fused_attn(accelerator.device.type != "cpu")
    return accelerator


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision for a forward pass; fp32 switches it off."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def share_buffers(accelerator: Accelerator, module: nn.Module) -> None:
    """Give every process the running statistics of the first one, as DDP does at the start of a step."""
    if accelerator.num_processes > 1:
        broadcast(list(module.buffers()))
