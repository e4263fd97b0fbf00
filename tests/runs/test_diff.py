"""What differs between two arms or runs, and why."""

from pathlib import Path

import pytest

from bench.cli.render_run import differences_text
from bench.config.precedence import UserOverrides
from bench.config.registry import places
from bench.config.schema import Arm, Study
from bench.config.stage import Plan
from bench.errors import BenchError
from bench.files import write_json
from bench.planning.planner import make_plan
from bench.planning.request import Request
from bench.runs.diff import diff_arms, diff_runs
from bench.runs.run import Run
from bench.runs.store import save_plan


def planned(output: Path, *given: Arm, tasks: tuple[str, ...] = ("demo",), **sets: object) -> Plan:
    study = Study(name="s", tasks=tasks, size="nano", arms=given)
    plan = make_plan(Request(study, places(), UserOverrides(sets={k.replace("__", "."): v for k, v in sets.items()})))
    save_plan(output, plan)
    return plan


def why(rows: list, key: str) -> set[str]:
    return {row.why for row in rows if row.key == key}


def test_a_value_that_an_arm_sets_is_on_purpose_and_all_else_is_alike(tmp_path: Path) -> None:
    planned(tmp_path, Arm(method="vit", label="a"), Arm(method="vit", label="b", set={"supervised.lr": 0.5}))
    (row,) = diff_arms(tmp_path, "s", ("a", "b"))
    assert (row.why, row.stage, row.key, row.second) == ("varied on purpose", "supervised", "recipe.lr", 0.5)
    assert row.origins[1] == "arm of study s"


def test_what_another_method_brings_follows_from_it(tmp_path: Path) -> None:
    planned(tmp_path, Arm(method="vit"), Arm(method="deit"))
    rows = diff_arms(tmp_path, "s", ("ViT", "DeiT"))
    assert why(rows, "method") == {"varied on purpose"}
    assert why(rows, "recipe.model_ema") == {"follows from that"}
    assert [(row.first, row.second) for row in rows if (row.stage, row.key) == ("teacher", "stage")] == [("-", "there")]
    assert not why(rows, "recipe.epochs")
    assert {row.why for row in rows} == {"varied on purpose", "follows from that"}
    assert differences_text(rows).index("varied on purpose") < differences_text(rows).index("follows from that")


def test_another_commit_or_other_data_are_unexplained(tmp_path: Path) -> None:
    first = planned(tmp_path, Arm(method="vit"))
    second = planned(tmp_path, Arm(method="vit"), supervised__lr=0.5)
    stages = [next(s for s in plan.stages.values() if s.kind == "supervised") for plan in (first, second)]
    other = {"train": stages[1].data["train"].model_copy(update={"identity": "another"})}
    stages[1] = stages[1].model_copy(update={"data": {**stages[1].data, **other}})
    for number, stage in enumerate(stages):
        write_json(
            Run.open(tmp_path / "runs", stage).path("environment.json"),
            {"git": {"commit": f"{number}"}, "time": number},
        )
    rows = diff_runs(tmp_path, (stages[0].folder, stages[1].folder))
    assert why(rows, "recipe.lr") == {"varied on purpose"}
    assert why(rows, "data.train.identity") == {"unexplained"}
    assert why(rows, "git.commit") == {"unexplained"}
    assert len(rows) == 3


def test_a_run_is_compared_with_all_that_it_goes_on_from(tmp_path: Path) -> None:
    folders = []
    for decay in (0.99, 0.999):
        plan = planned(tmp_path, Arm(method="data2vec"), pretrain__options__decay=decay)
        folders.append([Run.open(tmp_path / "runs", stage) for stage in plan.stages.values()][-1].root.name)
    rows = diff_runs(tmp_path, (folders[0], folders[1]))
    assert [(row.stage, row.key, row.first, row.second) for row in rows] == [("pretrain", "options.decay", 0.99, 0.999)]


def test_the_same_run_does_not_differ(tmp_path: Path) -> None:
    plan = planned(tmp_path, Arm(method="vit"))
    run = Run.open(tmp_path / "runs", next(iter(plan.stages.values())))
    assert differences_text(diff_runs(tmp_path, (run.root.name, run.root.name))) == "nothing differs"


def test_an_arm_is_named_by_its_label_and_an_unclear_name_is_refused(tmp_path: Path) -> None:
    planned(tmp_path, Arm(method="vit"), tasks=("demo", "demo-seg"))
    assert why(diff_arms(tmp_path, "s", ("ViT/demo", "ViT/demo-seg")), "task") == {"varied on purpose"}
    with pytest.raises(BenchError, match="'ViT' is ambiguous: ViT/demo, ViT/demo-seg; write more of it"):
        diff_arms(tmp_path, "s", ("ViT", "ViT/demo"))
    with pytest.raises(BenchError, match="no arm of s 'Vit2'"):
        diff_arms(tmp_path, "s", ("Vit2", "ViT/demo"))
