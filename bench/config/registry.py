"""Registry of tasks and studies: every TOML file in a task folder.

Task folders are the `tasks/` that travels with bench, BENCH_HOME/tasks and those of --include; a later one wins.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.config.schema import Study, Task
from bench.errors import BenchError, parse, read_toml, unknown
from bench.resources import shipped

Places = tuple[Path, ...]


def places(include: Iterable[Path] = ()) -> Places:
    """The task folders, weakest first."""
    folders = [shipped("tasks")]
    if os.environ.get("BENCH_HOME"):
        folders.append(Path(os.environ["BENCH_HOME"]) / "tasks")
    for folder in include:
        if not Path(folder).is_dir():
            raise BenchError(f"--include {folder}: no such folder")
        inner = Path(folder) / "tasks"
        folders.append(inner if inner.is_dir() else Path(folder))
    return tuple(folders)


def task_files(where: Places) -> dict[str, Path]:
    """Task name -> file."""
    return {path.stem: path for folder in where for path in sorted(folder.glob("*.toml"))}


def study_files(where: Places) -> dict[str, Path]:
    """Study name -> file."""
    return {path.stem: path for folder in where for path in sorted((folder / "studies").glob("*.toml"))}


def read_task(name: str, where: Places) -> Task:
    """The task `name`; BenchError suggests the nearest.

    A task that only scores the models of another inherits that one's protocol.
    """
    files = task_files(where)
    if name not in files:
        raise unknown("task", name, files)
    task = read_task_file(files[name])
    if not task.evaluates:
        return task
    if task.evaluates in files and read_task_file(files[task.evaluates]).evaluates:
        raise BenchError(f"{files[name]}: evaluates = {task.evaluates!r}, but nothing is trained on that task, either")
    trained = read_task(task.evaluates, where)
    own = {key: getattr(task.protocol, key) for key in task.protocol.model_fields_set}
    return task.model_copy(update={"protocol": trained.protocol.model_copy(update=own)})


def read_task_file(path: Path) -> Task:
    """Read a task file; the file's name is the task's. `base` names a task of the same folder to start from."""
    return parse(Task, {**_with_base(path), "name": path.stem}, str(path))


def _with_base(path: Path, over: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a task file, merged over those of its base. over: the files based on this one, to find cycles."""
    values = read_toml(path)
    base = values.pop("base", None)
    if base is None:
        return values
    beside = {file.stem: file for file in path.parent.glob("*.toml")}
    derived = (path.stem, *over)
    if base not in beside or base in derived:
        raise BenchError(f"{path}: base = {base!r}: {unknown('other task', str(base), beside.keys() - {*derived})}")
    return _merge(_with_base(beside[base], derived), values)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`: tables are merged, other values replaced."""
    tables = {
        key: _merge(below[key], above[key])
        for key in below.keys() & above.keys()
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping)
    }
    return {**below, **above, **tables}


def read_study(name: str, where: Places) -> Study:
    """A study by name, or by the path of its TOML file; BenchError suggests the nearest."""
    if name.endswith(".toml") or "/" in name:
        return read_study_file(Path(name))
    files = study_files(where)
    if name not in files:
        raise unknown("study", name, files)
    return read_study_file(files[name])


def read_study_file(path: Path) -> Study:
    """Read a study file; its name is the file's unless it gives one."""
    values = read_toml(path)
    return parse(Study, {**values, "name": values.get("name", path.stem)}, str(path))
