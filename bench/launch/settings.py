"""How a stage is run on this machine: launch.json of its folder. None of it changes the result."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from bench.config.schema import Count, Frozen
from bench.errors import parse
from bench.files import read_json
from bench.runs.run import Run


class Settings(Frozen):
    """Devices, parts of a batch, and where things lie."""

    num_processes: Count = 1
    micro_batch_size: Count | None = None  # images a process holds at once; None: its whole share of the batch
    workers: int = Field(default=0, ge=0)  # loader processes for each process
    threads: Count = 1  # of torch, per process
    compile: bool = False
    gradient_checkpointing: bool = False
    device: str = "cpu"
    parents: Mapping[str, str] = {}  # key of a parent stage -> its run folder
    roots: Mapping[str, str] = {}  # dataset -> folder
    max_unreadable: int = Field(default=0, ge=0)  # images that may be left out because they cannot be read


def read_settings(run: Run) -> Settings:
    """The settings the launcher wrote; BenchError when they are missing or not understood."""
    path = run.path("launch.json")
    return parse(Settings, read_json(path), str(path))
