"""The walk over a plan, with a worker that pretends: real processes through accelerate, no training."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench.cli.progress import ProgressLines
from bench.config.precedence import UserOverrides
from bench.config.registry import places
from bench.config.schema import Arm, Study
from bench.config.stage import Plan
from bench.errors import BenchError
from bench.launch.scheduler import PlanOutcome, graph_width, run_plan, units, urgency
from bench.launch.settings import Resources
from bench.planning.planner import make_plan
from bench.planning.request import Request
from bench.runs import store
from bench.runs.run import Run

CPU = Resources(devices="cpu")
# Numbers of our own, so that tuning the demo does not change a test.
NUMBERS = {
    f"{kind}.{name}": value
    for kind in ("teacher", "supervised")
    for name, value in (("epochs", 4), ("batch_size", 50), ("warmup_epochs", 0))
}


@pytest.fixture(autouse=True)
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "support"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("FAIL", "DIE", "SECONDS"):
        monkeypatch.delenv(f"PRETEND_{name}", raising=False)


def planned(*methods: str, seeds: tuple[int, ...] = (0,), name: str = "walk") -> Plan:
    arms = tuple(Arm(method=method) for method in methods)
    study = Study(name=name, tasks=("demo",), size="nano", seeds=seeds, arms=arms)
    overrides = UserOverrides(sets={k: v for k, v in NUMBERS.items() if _has(methods, k)})
    return make_plan(Request(study, places(), overrides))


def _has(methods: tuple[str, ...], address: str) -> bool:
    return address.startswith("supervised") or "deit" in methods


class RecordingWatcher(ProgressLines):
    """Keeps the lines instead of printing them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        super().__init__(self.lines.append, interval=0.0)

    def count(self, word: str) -> int:
        return sum(line.startswith(word) for line in self.lines)


def walk(plan: Plan, output: Path, watcher: RecordingWatcher | None = None, **options: object) -> PlanOutcome:
    return run_plan(plan, output, CPU, watcher or RecordingWatcher(), worker="pretend_worker", **options)  # type: ignore[arg-type]


def run_of(plan: Plan, output: Path, kind: str, method: str) -> Run:
    stage = next(stage for stage in plan.stages.values() if (stage.kind, stage.method) == (kind, method))
    return store.run_of(output, stage)


def test_evaluations_ride_along_with_their_training() -> None:
    plan = planned("vit")
    assert [[stage.kind for stage in unit.stages] for unit in units(plan, lambda stage: False)] == [
        ["supervised", "evaluate"]
    ]
    left = units(plan, lambda stage: stage.kind == "supervised")
    assert [[stage.kind for stage in unit.stages] for unit in left] == [["evaluate"]]


def test_one_training_rides_along_and_others_start_by_themselves() -> None:
    study = Study(name="two", tasks=("demo", "demo-seg"), size="nano", arms=(Arm(method="data2vec"),))
    waiting = units(make_plan(Request(study, places())), lambda stage: False)
    assert [[(stage.kind, stage.task) for stage in unit.stages] for unit in waiting] == [
        [("pretrain", "demo"), ("finetune", "demo"), ("evaluate", "demo")],
        [("finetune", "demo-seg"), ("evaluate", "demo-seg")],
    ]


def test_the_longest_way_is_the_most_urgent() -> None:
    waiting = units(planned("vit", "deit", seeds=(0, 1)), lambda stage: False)
    ahead = urgency(waiting)
    by_first = {(unit.stages[0].method, unit.stages[0].kind): ahead[unit.stages[0].key] for unit in waiting}
    assert by_first["deit", "teacher"] > by_first["deit", "supervised"]
    assert by_first["deit", "teacher"] > by_first["vit", "supervised"]


def test_width_counts_what_can_run_side_by_side() -> None:
    assert graph_width(units(planned("vit"), lambda stage: False)) == 1
    assert graph_width(units(planned("vit", "deit", seeds=(0, 1)), lambda stage: False)) == 3  # teacher, vit, vit
    assert graph_width([]) == 1


def test_a_finished_plan_is_not_run_again(tmp_path: Path) -> None:
    plan = planned("vit")
    first = walk(plan, tmp_path)
    assert (first.exit_code, set(first.results.values())) == (0, {"done"})
    assert store.read_plan(tmp_path, "walk") == plan
    watcher = RecordingWatcher()
    assert walk(plan, tmp_path, watcher).exit_code == 0
    assert watcher.count("start") == 0
    assert len(run_of(plan, tmp_path, "supervised", "vit").attempts()) == 1


def test_a_failure_stops_only_what_depends_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRETEND_FAIL", "teacher demo")
    plan, watcher = planned("vit", "deit"), RecordingWatcher()
    outcome = walk(plan, tmp_path, watcher)
    results = {(stage.method, stage.kind): outcome.results[key] for key, stage in plan.stages.items()}
    assert results == {
        ("vit", "supervised"): "done",
        ("vit", "evaluate"): "done",
        ("deit", "teacher"): "failed",
        ("deit", "supervised"): "blocked",
        ("deit", "evaluate"): "blocked",
    }
    assert outcome.exit_code == 1
    (line,) = [line for line in watcher.lines if line.startswith("failed")]
    assert "diverged at step 3" in line
    assert "the loss is not a number" in line
    assert "stderr.log" in line


def test_what_rode_along_behind_a_failure_runs_when_it_does_not_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND_FAIL", "evaluate demo")
    study = Study(name="ride", tasks=("demo", "demo-seg"), size="nano", arms=(Arm(method="vit"),))
    plan = make_plan(Request(study, places()))
    outcome = walk(plan, tmp_path)
    results = {(stage.kind, stage.task): outcome.results[key] for key, stage in plan.stages.items()}
    assert results.pop(("evaluate", "demo")) == "failed"
    assert set(results.values()) == {"done"}


def test_a_process_that_dies_without_a_word_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRETEND_DIE", "supervised demo")
    plan = planned("vit")
    outcome = walk(plan, tmp_path)
    assert sorted(outcome.results.values()) == ["blocked", "failed"]
    assert any("SIGKILL" in reason for reason in outcome.reasons.values())
    monkeypatch.delenv("PRETEND_DIE")
    assert walk(plan, tmp_path).exit_code == 0


def test_a_failed_stage_is_tried_again_and_can_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRETEND_FAIL", "supervised demo")
    plan = planned("vit")
    assert walk(plan, tmp_path).exit_code == 1
    run = run_of(plan, tmp_path, "supervised", "vit")
    run.path("checkpoints").mkdir()
    monkeypatch.delenv("PRETEND_FAIL")
    assert walk(plan, tmp_path, restart_failed=True).exit_code == 0
    assert not run.path("checkpoints").exists()
    assert [attempt["step"] for attempt in run.attempts()] == [0, 0]


def test_a_missing_output_is_made_again(tmp_path: Path) -> None:
    plan = planned("vit")
    assert walk(plan, tmp_path).exit_code == 0
    evaluation = run_of(plan, tmp_path, "evaluate", "vit")
    evaluation.path("final", "model.safetensors").unlink()
    watcher = RecordingWatcher()
    assert walk(plan, tmp_path, watcher).exit_code == 0
    assert [line.split()[1] for line in watcher.lines if line.startswith("start")] == ["evaluate"]


CHILD = """
import sys
from pathlib import Path
from bench.cli.progress import ProgressLines
from bench.launch.scheduler import run_plan
from bench.launch.settings import Resources
from bench.config.stage import Plan
plan = Plan.model_validate_json(Path(sys.argv[1]).read_text())
watcher = ProgressLines(lambda line: print(line, flush=True), 0.2)
outcome = run_plan(plan, Path(sys.argv[2]), Resources(devices="cpu"), watcher, worker="pretend_worker")
sys.exit(outcome.exit_code)
"""


def start(plan: Plan, output: Path, seconds: float) -> "subprocess.Popen[str]":
    path = output / "asked.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(plan.model_dump_json())
    environment = {**os.environ, "PRETEND_SECONDS": str(seconds)}
    command = [sys.executable, "-c", CHILD, str(path), str(output)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def wait_for(what: object, timeout: float = 60.0) -> None:
    end = time.monotonic() + timeout
    while not what():  # type: ignore[operator]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_at_a_step_and_the_same_command_goes_on(tmp_path: Path, number: int, code: int) -> None:
    plan = planned("vit")
    run = run_of(plan, tmp_path, "supervised", "vit")
    child = start(plan, tmp_path, seconds=60)
    wait_for(lambda: (run.progress() or {}).get("step", 0) >= 1)
    child.send_signal(number)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == code
    assert "stopping at the next step" in out
    status = run.status()
    assert status.state == "interrupted"
    assert status.step >= 1
    assert run.holder() is None
    assert walk(plan, tmp_path).exit_code == 0
    assert [attempt["step"] for attempt in run.attempts()] == [0, status.step]


def test_two_walks_at_once_share_the_work(tmp_path: Path) -> None:
    plan = planned("vit", "vit:strong")
    first = start(plan, tmp_path, seconds=2)
    wait_for(lambda: any(Run(path.parent).holder() for path in tmp_path.glob("runs/*/lease.json")))
    watcher = RecordingWatcher()
    assert walk(plan, tmp_path, watcher).exit_code == 0
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert watcher.count("wait") >= 1
    for stage in plan.stages.values():
        assert len(store.run_of(tmp_path, stage).attempts()) == 1


def test_a_batch_that_does_not_divide_is_refused_with_what_would(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"50 does not divide among 3 processes; it does among 1, 2, 5, 10, 25, 50"):
        run_plan(planned("vit"), tmp_path, Resources(devices="cpu", num_processes=3), RecordingWatcher())


def test_an_unwritable_output_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BenchError, match=r"cannot write .*file/runs: .*choose another --output-dir"):
        walk(planned("vit"), tmp_path / "file")


def test_lines_are_written_where_there_is_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRETEND_SECONDS", "1")
    watcher = RecordingWatcher()
    before = set(threading.enumerate())  # a library that other tests used may keep a thread of its own
    walk(planned("vit"), tmp_path, watcher)
    assert watcher.lines[0] == "walk: 2 stages, 0 of them already done"
    assert any("step" in line and "100 images/s, loss 1.5" in line for line in watcher.lines)
    assert set(threading.enumerate()) <= before
