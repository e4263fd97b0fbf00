"""Stages on this machine: `accelerate launch` with a configuration of its own, on a share of the devices."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
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
MOST_SLOTS = 4  # stages side by side on one CPU


class Slot(NamedTuple):
    """What one launch may use: GPUs by their names (none: the CPU), and threads for each of its processes."""

    gpus: tuple[str, ...]
    threads: int


class Launch(NamedTuple):
    """A launch under way: the runs it goes through, its process, when it began, and where in stderr.log."""

    runs: tuple[Run, ...]
    process: subprocess.Popen[bytes]
    slot: Slot
    began: float
    stderr_start: int


def slots(resources: Resources, width: int) -> list[Slot]:
    """The devices, dealt out to launches that run side by side; `width` is how many the plan can use at once."""
    gpus, wanted = visible_gpus(resources.devices), resources.num_processes
    if not gpus:
        count = max(1, min(MOST_SLOTS, cores() // wanted, width))
        return [Slot((), _threads(cores() // (count * wanted)))] * count
    if len(gpus) < wanted:
        raise BenchError(f"--num-processes {wanted} is more than the {len(gpus)} devices ({', '.join(gpus)})")
    groups = [tuple(gpus[start : start + wanted]) for start in range(0, len(gpus) - wanted + 1, wanted)]
    return [Slot(group, _threads(cores() // len(gpus))) for group in groups]


def check_batches(plan: Plan, resources: Resources) -> None:
    """BenchError when a batch of the plan does not divide among the processes, with the numbers that would fit."""
    for stage in plan.stages.values():
        if (recipe := stage.recipe) is not None:
            micro = micro_batch(recipe, resources)
            try:
                micro_batching(recipe.batch_size, resources.num_processes, micro, paired=is_paired(recipe))
            except BenchError as error:
                raise BenchError(f"{stage.method}, {stage.kind}: {error}") from None


def micro_batch(recipe: Recipe, resources: Resources) -> int | None:
    """--micro-batch-size, or a process's whole share where that is smaller."""
    share = recipe.batch_size // resources.num_processes
    wanted = resources.micro_batch_size
    return None if wanted is None or wanted >= share else wanted


def cores() -> int:
    """CPU cores this process may use: its affinity, and the share its container has."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        found = min(found, max(1, round(int(quota) / int(period))))
    return found


def _threads(share: int) -> int:
    """Threads of one process: OMP_NUM_THREADS where it is set, else its share of the cores."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(given) if given.isdigit() and int(given) else max(1, share)


def visible_gpus(devices: str) -> list[str]:
    """The GPUs to use, as CUDA_VISIBLE_DEVICES would name them; numbers count among those already visible."""
    if devices == "cpu":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = _listed_gpus() if visible is None else [name.strip() for name in visible.split(",") if name.strip()]
    if devices == "auto":
        return found
    numbers = devices.split(",")
    wrong = [n for n in numbers if not n.strip().isdigit() or int(n) >= len(found)]
    if wrong or len(set(numbers)) < len(numbers):
        what = f"{len(found)} GPUs, 0 to {len(found) - 1}" if found else "no GPU"
        raise BenchError(f"--devices {devices}: this process sees {what}; write cpu, auto, or numbers like 0,1")
    return [found[int(n)] for n in numbers]


def _listed_gpus() -> list[str]:
    """Numbers of the machine's NVIDIA GPUs, none where there is no driver."""
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split() if done.returncode == 0 else []


def start(
    stages: Sequence[Stage], runs: Mapping[str, Run], slot: Slot, resources: Resources, worker: str = WORKER
) -> Launch:
    """Write how the stages are run into their folders, and start them one after another in one launch."""
    folders = tuple(runs[stage.key] for stage in stages)
    command = _command(folders, slot, worker)
    for stage, run in zip(stages, folders, strict=True):
        _prepare(stage, run, runs, slot, resources)
    script = f"#!/bin/sh\ncd {shlex.quote(os.getcwd())} && exec {shlex.join(command)}\n"
    write_atomic(folders[0].path("launch.sh"), script)
    return _spawn(folders, command, slot)


def _prepare(stage: Stage, run: Run, runs: Mapping[str, Run], slot: Slot, resources: Resources) -> None:
    """launch.json and accelerate.yaml of a run; where an earlier launch was at is forgotten."""
    discard(run.path("progress.json"))
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
    """The configuration file of a launch, complete, so that no default of the user's applies.

    Several processes on the CPU are started as several GPUs would be: accelerate's MULTI_CPU starts only one.
    Precision is the stage's own, decided in its recipe, and so 'no' here. Port 0 is any free one.
    """
    values = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": "false",
        "distributed_type": "MULTI_GPU" if num_processes > 1 else '"NO"',
        "downcast_bf16": '"no"',
        "enable_cpu_affinity": "false",
        "gpu_ids": f'"{",".join(slot.gpus) or "all"}"',
        "machine_rank": 0,
        "main_process_port": 0,
        "main_training_function": "main",
        "mixed_precision": '"no"',
        "num_machines": 1,
        "num_processes": num_processes,
        "rdzv_backend": "static",
        "same_network": "true",
        "use_cpu": "false" if slot.gpus else "true",
    }
    return "".join(f"{name}: {value}\n" for name, value in values.items())


def _command(folders: Sequence[Run], slot: Slot, worker: str) -> list[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    config = ["--config_file", str(folders[0].path("accelerate.yaml").resolve())]
    threads = ["--num_cpu_threads_per_process", str(slot.threads)]
    return [*launcher, *config, *threads, "--module", worker, *(str(run.root.resolve()) for run in folders)]


def _spawn(folders: tuple[Run, ...], command: Sequence[str], slot: Slot) -> Launch:
    """Start a launch in a session of its own: a terminal's Ctrl-C reaches us alone, and we pass it on with care."""
    out, err = folders[0].path("stdout.log"), folders[0].path("stderr.log")
    began = time.time()
    try:
        with out.open("ab") as stdout, err.open("ab") as stderr:
            place = stderr.tell()
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
            )
    except OSError as error:
        raise unwritable(err, error) from None
    return Launch(folders, process, slot, began, place)


def stop(launch: Launch) -> None:
    """Ask a launch to stop at its next step boundary. Before its worker holds a run there is nothing to keep."""
    asked = [ask_to_stop(run.path("lease.json")) for run in launch.runs]
    if not any(asked):
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
    found, left = [], [pid]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def last_words(launch: Launch, lines: int = 15) -> str:
    """The end of what a launch wrote to stderr, without the launcher's own traceback."""
    path = launch.runs[0].path("stderr.log")
    with path.open("rb") as file:
        file.seek(max(launch.stderr_start, path.stat().st_size - 50_000))
        text = file.read().decode(errors="replace")
    return "\n".join(_worker_lines(text.splitlines())[-lines:])


def _worker_lines(lines: list[str]) -> list[str]:
    """What the workers wrote; of the launcher's traceback after it only the lines that tell how a process ended."""
    starts = [number for number, line in enumerate(lines) if line.startswith("Traceback")]
    if not starts or not any(LAUNCHER in line for line in lines[starts[-1] :]):
        return lines
    ends = [line for line in lines[starts[-1] :] if "died with" in line or line.strip().startswith("exitcode")]
    return lines[: starts[-1]] + [line.rpartition("]' ")[2].strip() for line in ends]
