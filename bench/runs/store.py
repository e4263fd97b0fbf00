"""The output folder: finding runs, storing plans.

<results>/runs/<kind>-<key12>/          a stage (run.py)
<results>/studies/<study>/plan.json     the plan that was last run
<results>/reports/<study>/              what `bench compare` wrote
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.config.stage import Plan, Stage
from bench.errors import BenchError, parse, unknown
from bench.files import read_json, unwritable, write_atomic
from bench.runs.run import Run

RUNS = "runs"  # subfolder of the output folder, for run folders


def run_of(output: Path, stage: Stage) -> Run:
    """The run of a stage, whether or not its folder exists."""
    return Run(Path(output) / RUNS / stage.folder)


def runs_folder(output: Path) -> Path:
    """The folder of run folders, created when missing; BenchError when it is not writable."""
    folder = Path(output) / RUNS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise unwritable(folder, error) from None
    return folder


def all_runs(output: Path) -> Iterator[Run]:
    """Every run under `output`, by name."""
    for path in sorted((Path(output) / RUNS).glob("*/stage.json")):
        yield Run(path.parent)


def find_run(output: Path, name: str) -> Run:
    """The run at the path `name`, or whose folder name or key starts with it; BenchError for none or several."""
    if (Path(name) / "stage.json").exists():
        return Run(Path(name))
    runs = list(all_runs(output))
    matches = [run for run in runs if name and any(part.startswith(name) for part in (run.root.name, _key12(run)))]
    if len(matches) > 1:
        raise BenchError(f"{name!r} is ambiguous: {', '.join(run.root.name for run in matches)}; write more of it")
    if not matches:
        raise unknown("run", name, [run.root.name for run in runs])
    return matches[0]


def _key12(run: Run) -> str:
    return run.root.name.partition("-")[2]


def save_plan(output: Path, plan: Plan) -> Path:
    """Store a study's plan for `bench compare`, under <output>/studies/<name>/plan.json."""
    name = plan.study.name
    if not name or name != Path(name).name or name.startswith("."):
        raise BenchError(f"a study cannot be called {name!r}: its folder will have that name")
    path = Path(output) / "studies" / name / "plan.json"
    write_atomic(path, plan.model_dump_json(indent=1))
    return path


def read_plan(output: Path, study: str) -> Plan:
    """The plan that `bench run` stored; BenchError names the studies that have one."""
    path = Path(output) / "studies" / study / "plan.json"
    if not path.exists():
        raise unknown("study that was run", study, studies(output))
    try:
        return parse(Plan, read_json(path), str(path))
    except BenchError as error:
        raise BenchError(f"{error}. `bench run {study}` of this version of bench plans it anew") from None


def studies(output: Path) -> list[str]:
    """Names of the studies that were run under `output`."""
    return [path.parent.name for path in sorted((Path(output) / "studies").glob("*/plan.json"))]
