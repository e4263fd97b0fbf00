"""FLOPs of a training step, and the peak FLOP/s of the device."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.launch.distributed import DTYPES, autocast

if TYPE_CHECKING:
    from bench.methods.objective import Batch, Objective

# Dense matrix products in TFLOP/s as the makers state them: part of the device's name, 16-bit, fp32 (TF32 not used).
# The first that fits counts, so a longer name stands before the one it contains.
PEAKS = (
    ("B200", 2250.0, 80.0),
    ("H200", 989.0, 67.0),
    ("H100 PCIe", 756.0, 51.0),
    ("H100", 989.0, 67.0),
    ("A100", 312.0, 19.5),
    ("L40S", 362.0, 91.6),
    ("A40", 149.7, 37.4),
    ("A10", 125.0, 31.2),
    ("L4", 121.0, 30.3),
    ("V100", 125.0, 15.7),
    ("T4", 65.0, 8.1),
    ("RTX 4090", 165.2, 82.6),
    ("RTX 3090", 71.0, 35.6),
)


def flops_per_image(objective: Objective, batch: Batch, *, precision: str, batch_size: int) -> float:
    """FLOPs of one training step per image: forward and backward, with teacher and tokenizer; a multiply-add is 2.

    Counted on the few images of `batch`, normalised and on the objective's device; running statistics, gradients
    and weights are left as they were. Only matrix products and convolutions are counted.
    """
    before = [buffer.clone() for buffer in objective.buffers()]
    device = batch["image"].device
    prepared = objective.prepare(batch, seed=0, step=0, batch_size=batch_size)
    counter = FlopCounterMode(display=False)
    with autocast(device, precision):
        with torch.no_grad():
            objective(prepared)  # an objective may do in its first call what it does only once
        with counter:
            objective(prepared)["loss"].backward()
    objective.zero_grad(set_to_none=True)
    for buffer, value in zip(objective.buffers(), before, strict=True):
        buffer.copy_(value)
    return counter.get_total_flops() / len(batch["image"])


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The peak FLOP/s of one device, or None when it is not known.

    Of GPUs as their makers state it; of a CPU as measured by a matrix product, with the threads torch has now.
    """
    if device.type == "cpu":
        return _measure(precision)
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for part, half, single in PEAKS:
        if part in name:
            return 1e12 * (single if precision == "fp32" else half)
    return None


def _measure(precision: str, side: int = 768, repeats: int = 5) -> float:
    """FLOP/s of the fastest of a few square matrix products."""
    matrix = torch.ones(side, side, dtype=DTYPES[precision])
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
