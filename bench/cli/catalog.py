"""List methods, tasks, studies and runs, and validate the files that define them. Reads no data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import methods
from bench.cli.formatting import Row
from bench.cli.render_run import run_row
from bench.config.fidelity import published_level
from bench.config.overrides import flatten, parse_address
from bench.config.precedence import variants
from bench.config.registry import Places, places, read_study_file, read_task, read_task_file, study_files, task_files
from bench.config.schema import Method, Overrides, Recipe, Study, Task
from bench.data import datasets
from bench.errors import BenchError, parse, read_toml, unknown
from bench.planning.planner import plan_without_data
from bench.runs.store import all_runs


def rows(what: str, include: Sequence[Path], output: Path) -> list[Row]:
    """All methods, tasks, studies or runs, one row each."""
    where = places(include)
    if what == "methods":
        return [row for name in methods.names() for row in _method_rows(methods.read(name))]
    if what == "tasks":
        return [_task_row(read_task_file(path)) for path in task_files(where).values()]
    if what == "studies":
        return [_study_row(read_study_file(path)) for path in study_files(where).values()]
    return [run_row(run) for run in all_runs(output)]


def _method_rows(method: Method) -> list[Row]:
    rows = [{"method": method.name, "fidelity": published_level(method, ""), "what it does": method.summary}]
    rows += [
        {"method": f"{method.name}:{name}", "fidelity": published_level(method, name), "what it does": variant.summary}
        for name, variant in variants(method).items()
    ]
    return rows


def _task_row(task: Task) -> Row:
    budgets = ", ".join([*task.budgets, "published"])
    return {"task": task.name, "kind": task.kind, "metric": task.metric, "budgets": budgets, "title": task.title}


def _study_row(study: Study) -> Row:
    arms = ", ".join(dict.fromkeys(arm.method for arm in study.arms))
    return {"study": study.name, "size": study.size, "seeds": str(len(study.seeds)), "arms": arms, "title": study.title}


def validate(path: Path, include: Sequence[Path]) -> str:
    """Check a task, study or method file. Returns the kind of file; BenchError says what is wrong."""
    values, where = read_toml(path), places(include)
    if "arms" in values:
        return f"a study of {len(plan_without_data(read_study_file(path), where).study.arms)} arms"
    if "dataset" in values or "base" in values:
        _check_task(read_task_file(path), where)
        return "a task"
    if "paper" in values or "stages" in values:
        _check_method(parse(Method, {**values, "name": path.stem}, str(path)))
        return "a method"
    raise BenchError(f"{path}: a study has [[arms]], a task has dataset, a method has stages; this has none of them")


def _check_task(task: Task, where: Places) -> None:
    if task.dataset not in datasets.names():
        raise unknown("data set", task.dataset, datasets.names())
    for name in filter(None, (task.supervised_task, task.toy, task.evaluates, *task.intermediate)):
        read_task(name, where)
    _check_overrides(task, f"task {task.name}")
    for name, budget in task.budgets.items():
        _check_overrides(budget, f"task {task.name}, budget {name}")


def _check_overrides(values: Overrides, where: str) -> None:
    unknown_methods = set(values.methods) - set(methods.names())
    for method in sorted(unknown_methods):
        raise BenchError(f"{where}: {unknown('method', method, methods.names())}")
    for nested in (values.recipe, *values.methods.values()):
        _check_recipes(flatten(nested, where), where)


def _check_method(method: Method) -> None:
    where = f"method {method.name}"
    flatten({"model": method.model}, where)
    sets = [flatten(method.recipe, where), *method.sizes.values(), *(v.set for v in method.variants.values())]
    for values in sets:
        for text in values.keys() - {"stages"}:
            parse_address(text, where=f"{where}: ")
        _check_recipes({text: value for text, value in values.items() if text != "stages"}, where)


def _check_recipes(flat: dict[str, object], where: str) -> None:
    """The types of recipe values, stage by stage."""
    for stage in _stages(flat):
        addresses = {text: parse_address(text) for text in flat}
        recipe = {a.name: flat[text] for text, a in addresses.items() if a.stage == stage and a.part == "recipe"}
        parse(Recipe, recipe, f"{where}, {stage}")


def _stages(flat: Iterable[str]) -> list[str]:
    return sorted({parse_address(text).stage for text in flat})
