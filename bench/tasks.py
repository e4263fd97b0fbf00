"""Finding tasks and studies: a folder is the registry.

Looked for in `tasks/` beside the package, in BENCH_HOME/tasks, and in what --include names; later ones win.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import bench
from bench.spec import BenchError, Study, Task, parse, read_toml, unknown

Places = tuple[Path, ...]


def places(include: Iterable[Path] = ()) -> Places:
    """The folders that hold task files, least important first."""
    found = [Path(bench.__file__).resolve().parent.parent / "tasks"]
    if os.environ.get("BENCH_HOME"):
        found.append(Path(os.environ["BENCH_HOME"]) / "tasks")
    for folder in include:
        if not Path(folder).is_dir():
            raise BenchError(f"--include {folder}: no such folder")
        inner = Path(folder) / "tasks"
        found.append(inner if inner.is_dir() else Path(folder))
    return tuple(found)


def task_files(where: Places) -> dict[str, Path]:
    """Task names and their files."""
    return {path.stem: path for folder in where for path in sorted(folder.glob("*.toml"))}


def study_files(where: Places) -> dict[str, Path]:
    """Study names and their files."""
    return {path.stem: path for folder in where for path in sorted((folder / "studies").glob("*.toml"))}


def read_task(name: str, where: Places) -> Task:
    """The task `name`; BenchError offers the nearest."""
    files = task_files(where)
    if name not in files:
        raise unknown("task", name, files)
    return task_from(files[name])


def task_from(path: Path) -> Task:
    """The task in a file; its name is the file's."""
    return parse(Task, {**read_toml(path), "name": path.stem}, str(path))


def read_study(name: str, where: Places) -> Study:
    """A study by name, or by the path of its TOML file; BenchError offers the nearest."""
    if name.endswith(".toml") or "/" in name:
        return study_from(Path(name))
    files = study_files(where)
    if name not in files:
        raise unknown("study", name, files)
    return study_from(files[name])


def study_from(path: Path) -> Study:
    """The study in a file; its name is the file's unless it gives one."""
    values = read_toml(path)
    return parse(Study, {**values, "name": values.get("name", path.stem)}, str(path))
