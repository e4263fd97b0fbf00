"""Every study that is shipped runs unchanged at toy scale, through the same planning, stages and report."""

from pathlib import Path

import pytest
from small import ready

from bench.config.precedence import UserOverrides
from bench.config.registry import places, read_study, study_files
from bench.config.schema import Arm, Study
from bench.errors import BenchError
from bench.planning.planner import make_plan
from bench.planning.request import Request
from bench.planning.toy import toy
from bench.reporting import compare
from bench.training import worker

SHIPPED = sorted(study_files(places()))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the studies share what they have in common."""
    return tmp_path_factory.mktemp("results")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_study_runs_at_toy_scale_to_its_report(name: str, results: Path) -> None:
    plan = make_plan(toy(Request(study=read_study(name, places()), places=places())))
    runs = ready(results, plan)
    assert worker.main([str(run.root) for run in runs.values() if not run.is_done()]) == 0
    assert all(run.is_done() for run in runs.values())
    report = compare(plan, results, results / "reports" / plan.study.name)
    assert report.complete
    assert not any(run.results().get("reportable") for run in runs.values())


def asked(**values: object) -> Request:
    study = {"name": "s", "tasks": ("imagenet1k",), "arms": (Arm(method="vit"),), **values}
    return Request(study=Study(**study), places=places(), overrides=UserOverrides())  # type: ignore[arg-type]


def test_a_toy_keeps_its_arms_apart_and_learns_from_embedded_pictures() -> None:
    arms = (Arm(method="vit", size="base"), Arm(method="vit", size="large"))
    plan = make_plan(toy(asked(arms=arms)))
    assert plan.study.name == "s-toy"
    assert {data.dataset for stage in plan.stages.values() for data in stage.data.values()} == {"demo"}
    assert len({tuple(arm.stages[0].values()) for arm in plan.arms}) == 2
    assert [arm.label for arm in plan.arms] == ["vit base", "vit large"]


def test_what_would_be_downloaded_is_trained_at_toy_scale() -> None:
    arm = Arm(method="beit", set={"pretrain.options.tokenizer": "facebook/flava-image-codebook"})
    real = asked(arms=(arm,), tasks=("demo",), size="nano")
    assert "tokenizer" not in {stage.kind for stage in make_plan(real).stages.values()}
    assert "tokenizer" in {stage.kind for stage in make_plan(toy(real)).stages.values()}


def test_a_task_without_embedded_data_has_no_toy() -> None:
    with pytest.raises(BenchError, match="task folder names no toy"):
        toy(asked(tasks=("folder",)))


def test_intermediate_labels_are_a_stage_of_their_own() -> None:
    plain, between = Arm(method="beit"), Arm(method="beit", label="more", intermediate=("demo",))  # toys already
    plan = make_plan(toy(asked(arms=(plain, between), tasks=("demo-transfer",), size="nano")))
    assert list(plan.arms[0].stages[0]) == ["tokenizer", "pretrain", "finetune", "evaluate"]
    assert list(plan.arms[1].stages[0]) == ["tokenizer", "pretrain", "finetune-demo", "finetune", "evaluate"]
    stages = [plan.stages[key] for key in plan.arms[1].stages[0].values()]
    assert [stage.task for stage in stages] == ["demo", "demo", "demo", "demo-transfer", "demo-transfer"]
    assert stages[3].parents == {"start": stages[2].key}


def test_labels_that_were_learned_from_scratch_are_not_learned_once_more() -> None:
    plan = make_plan(toy(asked(tasks=("demo-64",), size="nano")))
    assert list(plan.arms[0].stages[0]) == ["supervised", "finetune", "evaluate"]
