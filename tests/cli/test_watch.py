"""The progress of a running study, read from its run folders alone."""

from pathlib import Path

import pytest

from bench.cli.render_run import watch_text
from bench.cli.watch import rows, sparkline, study_progress, watch
from bench.config.registry import places
from bench.config.schema import Arm, Study
from bench.config.stage import Plan
from bench.errors import BenchError
from bench.files import write_json
from bench.planning.planner import make_plan
from bench.planning.request import Request
from bench.runs.run import Record, Run
from bench.runs.store import save_plan


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Two arms and two seeds, planned and not begun."""
    arms = (Arm(method="vit"), Arm(method="deit"))
    planned = make_plan(Request(Study(name="s", tasks=("demo",), size="nano", seeds=(0, 1), arms=arms), places()))
    save_plan(tmp_path, planned)
    return planned


def run_of(plan: Plan, output: Path, kind: str, method: str, seed: int = 0) -> Run:
    stage = next(s for s in plan.stages.values() if (s.kind, s.method, s.seed) == (kind, method, seed))
    return Run.open(output / "runs", stage)


def finish(run: Run) -> None:
    run.finish({"steps": 1}, [])


def cells(plan: Plan, output: Path) -> dict[str, dict[str, str]]:
    return {row["arm"]: row for row in rows(study_progress(plan, output))}


def test_nothing_has_begun(plan: Plan, tmp_path: Path) -> None:
    assert cells(plan, tmp_path)["ViT"] == {
        "arm": "ViT", "teacher": "", "supervised": "0/2 pending", "evaluate": "0/2 pending"
    }  # fmt: skip
    assert not study_progress(plan, tmp_path).over


def test_a_running_stage_tells_its_speed_what_is_left_and_how_its_score_moves(plan: Plan, tmp_path: Path) -> None:
    finish(run_of(plan, tmp_path, "supervised", "vit", seed=1))
    run = run_of(plan, tmp_path, "supervised", "vit")
    with run.lease():
        run.set_status("running", step=30, steps=120)
        now = {"step": 30, "steps": 120, "images_per_second": 812.4, "eta_seconds": 200}
        write_json(run.path("progress.json"), now)
        run.append(
            Record(step, 1.0, 10, 1.0, "val", "top1", value) for step, value in ((10, 10.0), (20, 30.0), (30, 80.0))
        )
        assert cells(plan, tmp_path)["ViT"]["supervised"] == "1/2 25 % 812/s 3:20 left ▁▃█"
    assert cells(plan, tmp_path)["ViT"]["supervised"] == "1/2 interrupted 25 % ▁▃█"


def test_what_waits_for_a_failed_stage_is_blocked_and_the_reason_is_told(plan: Plan, tmp_path: Path) -> None:
    run_of(plan, tmp_path, "teacher", "deit").set_status("failed", error="the loss is not a number")
    texts = cells(plan, tmp_path)
    assert (texts["DeiT"]["teacher"], texts["DeiT"]["supervised"]) == ("failed", "0/2 blocked")
    assert texts["ViT"]["supervised"] == "0/2 pending"
    assert "DeiT, teacher: the loss is not a number" in watch_text(study_progress(plan, tmp_path))


def test_watching_ends_when_nothing_is_left_to_do(plan: Plan, tmp_path: Path) -> None:
    tables = []
    for stage in plan.stages.values():
        finish(Run.open(tmp_path / "runs", stage))
    watch(tmp_path, "s", tables.append, interval=60)
    assert [table.over for table in tables] == [True]
    assert "s: 9 of 9 stages done" in watch_text(tables[0])


def test_a_damaged_folder_does_not_end_the_watch(plan: Plan, tmp_path: Path) -> None:
    run = run_of(plan, tmp_path, "supervised", "vit")
    run.path("status.json").write_text("{")
    assert "status.json" in watch_text(study_progress(plan, tmp_path))


def test_a_study_that_was_never_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no study that was run 'demo'"):
        watch(tmp_path, "demo", lambda table: None, interval=1)


@pytest.mark.parametrize(
    ("values", "line"),
    [([], ""), ([1.0], ""), ([0.0, 1.0], "▁█"), ([2.0, 2.0], "▁▁"), (list(range(100)), "▁▂▂▃▄▄▅▅▆▇▇█")],
)
def test_a_sparkline_goes_from_lowest_to_highest(values: list[float], line: str) -> None:
    assert sparkline(values) == line
