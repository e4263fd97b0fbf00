"""Launches on this machine: `accelerate launch` with a configuration of its own, on a share of the devices."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.config.schema import Recipe
from bench.config.stage import Plan, Stage
from bench.errors import BenchError
from bench.files import discard, unwritable, write_atomic
from bench.launch.settings import Resources, Settings
from bench.pipeline.sampler import is_paired, micro_batching
from bench.runs.lease import ask_to_stop
from bench.runs.run import Run

WORKER = "bench.training.worker"
LAUNCHER = "accelerate/commands/launch.py"
MOST_SLOTS = 4  # launches in parallel on one CPU


class Slot(NamedTuple):
    """What one launch may use: GPUs by their names (none: the CPU), and threads for each of its processes."""

    gpus: tuple[str, ...]
    threads: int


@dataclass(frozen=True, slots=True)
class Launch:
    """A running launch: its runs in order, its process, and what it uses."""

    runs: tuple[Run, ...]
    process: subprocess.Popen[bytes]
    slot: Slot
    began: float  # seconds since the epoch; a status that is older is of an earlier launch
    stderr_start: int  # where in stderr.log, to which every launch appends


def slots(resources: Resources, width: int) -> list[Slot]:
    """Divide the devices among launches that run in parallel; `width` is how many the plan can use at once."""
    gpus, processes = visible_gpus(resources.devices), resources.num_processes
    if not gpus:
        count = max(1, min(MOST_SLOTS, cores() // processes, width))
        return [Slot((), _threads(cores() // (count * processes)))] * count
    if len(gpus) < processes:
        raise BenchError(f"--num-processes {processes} is more than the {len(gpus)} devices ({', '.join(gpus)})")
    groups = [tuple(gpus[start : start + processes]) for start in range(0, len(gpus) - processes + 1, processes)]
    return [Slot(group, _threads(cores() // len(gpus))) for group in groups]


def check_batches(plan: Plan, resources: Resources) -> None:
    """Raise BenchError when a batch of the plan does not divide among the processes, and name numbers that fit."""
    for stage in plan.stages.values():
        if (recipe := stage.recipe) is not None:
            micro = micro_batch(recipe, resources)
            try:
                micro_batching(recipe.batch_size, resources.num_processes, micro, paired=is_paired(recipe))
            except BenchError as error:
                raise BenchError(f"{stage.method}, {stage.kind}: {error}") from None


def micro_batch(recipe: Recipe, resources: Resources) -> int | None:
    """--micro-batch-size, or a process's whole share where that is smaller."""
    share, limit = recipe.batch_size // resources.num_processes, resources.micro_batch_size
    return None if limit is None or limit >= share else limit


def cores() -> int:
    """CPU cores this process may use: those of its affinity, at most its container's quota."""
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no cgroup v2, or the quota is the word max
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        number = min(number, max(1, round(int(quota) / int(period))))
    return number


def _threads(share: int) -> int:
    """Threads of one process: OMP_NUM_THREADS where it is set, else its share of the cores."""
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # OpenMP takes one number per nesting level
    return int(threads) if threads.isdigit() and int(threads) else max(1, share)


def visible_gpus(devices: str) -> list[str]:
    """The GPUs to use, as CUDA_VISIBLE_DEVICES would name them; numbers count among those already visible."""
    if devices == "cpu":
        return []
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = _list_gpus() if variable is None else [name.strip() for name in variable.split(",") if name.strip()]
    if devices == "auto":
        return gpus
    numbers = devices.split(",")
    wrong = [n for n in numbers if not n.strip().isdigit() or int(n) >= len(gpus)]
    if wrong or len(set(numbers)) < len(numbers):
        what = f"{len(gpus)} GPUs, 0 to {len(gpus) - 1}" if gpus else "no GPU"
        raise BenchError(f"--devices {devices}: this process sees {what}; write cpu, auto, or numbers like 0,1")
    return [gpus[int(n)] for n in numbers]


def _list_gpus() -> list[str]:
    """Numbers of the machine's NVIDIA GPUs, none where there is no driver. Without torch, which takes seconds."""
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split() if done.returncode == 0 else []


def start(
    stages: Sequence[Stage], runs: Mapping[str, Run], slot: Slot, resources: Resources, worker: str = WORKER
) -> Launch:
    """Start stages one after another in one launch; how they are run is written into their folders before."""
    launched = tuple(runs[stage.key] for stage in stages)
    command = _command(launched, slot, worker)
    for stage, run in zip(stages, launched, strict=True):
        _prepare(stage, run, runs, slot, resources)
    script = f"#!/bin/sh\ncd {shlex.quote(os.getcwd())} && exec {shlex.join(command)}\n"
    write_atomic(launched[0].path("launch.sh"), script)  # to start it by hand
    return _spawn(launched, command, slot)


def _prepare(stage: Stage, run: Run, runs: Mapping[str, Run], slot: Slot, resources: Resources) -> None:
    """Write launch.json and accelerate.yaml of a run."""
    discard(run.path("progress.json"))  # an earlier launch's, which would pass for this one's
    micro = micro_batch(stage.recipe, resources) if stage.recipe else resources.micro_batch_size
    settings = Settings(
        **{**dict(resources), "micro_batch_size": micro},
        threads=slot.threads,
        device="cuda" if slot.gpus else "cpu",
        parents={key: str(runs[key].root.resolve()) for key in stage.parents.values()},
        roots={data.dataset: data.root for data in stage.data.values() if data.root},
    )
    write_atomic(run.path("launch.json"), settings.model_dump_json(indent=1) + "\n")
    write_atomic(run.path("accelerate.yaml"), accelerate_config(slot, resources.num_processes))


def accelerate_config(slot: Slot, num_processes: int) -> str:
    """accelerate's configuration file for a launch, complete, so that no default of the user's applies."""
    values = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": "false",
        # On the CPU as well: accelerate's MULTI_CPU starts only one process.
        "distributed_type": "MULTI_GPU" if num_processes > 1 else '"NO"',
        "downcast_bf16": '"no"',
        "enable_cpu_affinity": "false",
        "gpu_ids": f'"{",".join(slot.gpus) or "all"}"',
        "machine_rank": 0,
        "main_process_port": 0,  # any free one
        "main_training_function": "main",
        "mixed_precision": '"no"',  # autocast is ours, in the precision of the stage's recipe
        "num_machines": 1,
        "num_processes": num_processes,
        "rdzv_backend": "static",
        "same_network": "true",
        "use_cpu": "false" if slot.gpus else "true",
    }
    return "".join(f"{name}: {value}\n" for name, value in values.items())


def _command(runs: Sequence[Run], slot: Slot, worker: str) -> list[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    config = ["--config_file", str(runs[0].path("accelerate.yaml").resolve())]
    threads = ["--num_cpu_threads_per_process", str(slot.threads)]
    return [*launcher, *config, *threads, "--module", worker, *(str(run.root.resolve()) for run in runs)]


def _spawn(runs: tuple[Run, ...], command: Sequence[str], slot: Slot) -> Launch:
    out, err = runs[0].path("stdout.log"), runs[0].path("stderr.log")
    began = time.time()
    try:
        with out.open("ab") as stdout, err.open("ab") as stderr:
            place = stderr.tell()
            # A session of its own: a terminal's Ctrl-C reaches us alone, and we ask the worker to stop at a step.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
            )
    except OSError as error:
        raise unwritable(err, error) from None
    return Launch(runs, process, slot, began, place)


def stop(launch: Launch) -> None:
    """Ask a launch to stop at its next step boundary."""
    reached = [ask_to_stop(run.path("lease.json")) for run in launch.runs]
    if not any(reached):  # its worker holds no lease yet, so that nothing is lost
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(launch.process.pid, signal.SIGTERM)


def kill(launch: Launch) -> None:
    """End a launch at once, with the processes it started in sessions of their own."""
    for pid in [*_descendants(launch.process.pid), launch.process.pid]:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """The processes below `pid`, as far as this system tells (/proc)."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    descendants, to_visit = [], [pid]
    while to_visit:
        below = children.get(to_visit.pop(), [])
        descendants += below
        to_visit += below
    return descendants


def stderr_tail(launch: Launch, lines: int = 15) -> str:
    """The end of what a launch wrote to stderr, without the launcher's own traceback."""
    path = launch.runs[0].path("stderr.log")
    with path.open("rb") as file:
        file.seek(max(launch.stderr_start, path.stat().st_size - 50_000))  # bytes; a long log is not read whole
        text = file.read().decode(errors="replace")
    return "\n".join(_worker_lines(text.splitlines())[-lines:])


def _worker_lines(lines: list[str]) -> list[str]:
    """What the workers wrote; of the launcher's traceback at the end only the lines that say how a process ended."""
    starts = [number for number, line in enumerate(lines) if line.startswith("Traceback")]
    if not starts or not any(LAUNCHER in line for line in lines[starts[-1] :]):
        return lines
    ends = [line for line in lines[starts[-1] :] if "died with" in line or line.strip().startswith("exitcode")]
    return lines[: starts[-1]] + [line.rpartition("]' ")[2].strip() for line in ends]
