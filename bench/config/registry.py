"""Finding tasks and studies: a folder is the registry.

Looked for in the `tasks/` that travels with bench, in BENCH_HOME/tasks, and in what --include names; later ones win.
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
    """The folders that hold task files, least important first."""
    found = [shipped("tasks")]
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
    """The task `name`; BenchError offers the nearest.

    One that only scores the models of another has its protocol, but for what it says itself.
    """
    files = task_files(where)
    if name not in files:
        raise unknown("task", name, files)
    task = task_from(files[name])
    if not task.evaluates:
        return task
    if task.evaluates in files and task_from(files[task.evaluates]).evaluates:
        raise BenchError(f"{files[name]}: evaluates = {task.evaluates!r}, but nothing is trained on that task, either")
    trained = read_task(task.evaluates, where)
    own = {key: getattr(task.protocol, key) for key in task.protocol.model_fields_set}
    return task.model_copy(update={"protocol": trained.protocol.model_copy(update=own)})


def task_from(path: Path) -> Task:
    """The task in a file; its name is the file's. `base` names a task of the same folder that it changes."""
    return parse(Task, {**_with_base(path), "name": path.stem}, str(path))


def _with_base(path: Path, over: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a task file, laid over those of the task that it is based on."""
    values = read_toml(path)
    base = values.pop("base", None)
    if base is None:
        return values
    beside = {file.stem: file for file in path.parent.glob("*.toml")}
    if base not in beside or base in (path.stem, *over):
        raise BenchError(
            f"{path}: base = {base!r}: {unknown('other task', str(base), beside.keys() - {path.stem, *over})}"
        )
    return _laid_over(_with_base(beside[base], (path.stem, *over)), values)


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged, other values replaced."""
    both = {
        key: _laid_over(below[key], above[key]) for key in below.keys() & above.keys() if _tables(below, above, key)
    }
    return {**below, **above, **both}


def _tables(below: Mapping[str, Any], above: Mapping[str, Any], key: str) -> bool:
    return isinstance(below[key], Mapping) and isinstance(above[key], Mapping)


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
