"""The environment of a run, for the record: commit, versions, devices, command line, a few variables."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from bench.version import __version__

PACKAGES = ("torch", "torchvision", "timm", "transformers", "accelerate", "numpy", "pillow", "safetensors", "pandas")
VARIABLES = (  # nothing else of the environment is ever stored: it may hold passwords
    "BENCH_CACHE",
    "BENCH_DATA_DIR",
    "BENCH_HOME",
    "BENCH_OUTPUT_DIR",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "LOCAL_RANK",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "RANK",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_JOB_ID",
    "SLURM_NODELIST",
    "SLURM_PROCID",
    "SLURM_RESTART_COUNT",
    "WORLD_SIZE",
)
BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})  # of x86 processors, and of ARM's
BF16_COMPUTE_CAPABILITY = 8.0  # of NVIDIA's GPUs: Ampere and later


def environment() -> dict[str, Any]:
    """What this process runs on and with, as JSON. Names the GPUs only when torch is already imported."""
    return {
        "bench": __version__,
        "git": commit(),
        "python": platform.python_version(),
        "packages": versions(),
        "system": platform.platform(),
        "host": socket.gethostname(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "devices": _devices(),
        "command": shlex.join(sys.argv),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


@lru_cache(maxsize=1)
def commit() -> dict[str, Any]:
    """{"commit": hash or None, "dirty": whether files differ from it} of the source that runs."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    head, changed = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": head, "dirty": None if changed is None else bool(changed)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None  # no git here: the commit is unknown, and is stored as such
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Installed versions of the packages that numbers depend on."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


@lru_cache(maxsize=1)
def computes_in_bf16() -> bool:
    """Whether this machine has bf16 matrix products in hardware; elsewhere they are emulated, slower than fp32."""
    try:
        command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        query = subprocess.run(command, capture_output=True, text=True, timeout=10)
        if query.returncode == 0 and query.stdout.strip():
            return all(float(number) >= BF16_COMPUTE_CAPABILITY for number in query.stdout.split())
    except (OSError, subprocess.TimeoutExpired, ValueError):
        pass  # no GPU that says what it can do
    try:
        return not BF16_FLAGS.isdisjoint(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _devices() -> list[str]:
    """Names of the visible GPUs; none when torch is not imported."""
    torch = sys.modules.get("torch")  # importing it here would take seconds
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
