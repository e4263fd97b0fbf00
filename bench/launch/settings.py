"""How stages are run on this machine, and launch.json of a run folder. None of it changes a result."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from bench.config.schema import Count, Frozen
from bench.errors import parse
from bench.files import read_json
from bench.runs.run import Run


class Resources(Frozen):
    """What the stages of a plan may use: processes, devices, memory."""

    num_processes: Count = 1  # that share the batch of each stage
    devices: str = Field(default="auto", exclude=True)  # auto, cpu, or GPUs by number; launch.json has `device`
    micro_batch_size: Count | None = None  # images a process holds at once; None: its whole share of the batch
    workers: int = Field(default=0, ge=0)  # loader processes for each process
    compile: bool = False
    gradient_checkpointing: bool = False
    max_unreadable: int = Field(default=0, ge=0)  # images that may be left out because they cannot be read


class Settings(Resources):
    """How one stage is launched: what it may use, and where its data and parents are."""

    threads: Count = 1  # of torch, per process
    device: str = "cpu"
    parents: Mapping[str, str] = {}  # key of a parent stage -> its run folder
    roots: Mapping[str, str] = {}  # dataset -> folder


def read_settings(run: Run) -> Settings:
    """The settings the launcher wrote; BenchError when they are missing or not understood."""
    path = run.path("launch.json")
    return parse(Settings, read_json(path), str(path))
