"""How close an arm is to its paper is said wherever the arm is, and what only stands in for a part is never ranked."""

import json
from pathlib import Path
from typing import Any

import pytest
from compare_tree import Tree, build

from bench import methods
from bench.cli.catalog import rows
from bench.config import fidelity
from bench.config.precedence import UserOverrides, variants
from bench.config.registry import places
from bench.config.schema import Arm, Study
from bench.config.stage import Plan, PlannedArm
from bench.errors import BenchError
from bench.planning.planner import make_plan, plan_with_history
from bench.planning.request import WITHOUT_DATA, Request
from bench.reporting import Report, compare
from bench.reporting.analysis.findings import analyse

NAMED = {"exact", "close", "variant", "placeholder"}
EVERY = [(name, variant) for name in methods.names() for variant in ("", *variants(methods.read(name)))]


def published(method: str, task: str = "imagenet1k", **changes: Any) -> PlannedArm:
    """An arm as its paper has it, planned without looking at data. changes: 'stage__key' -> value."""
    values = {name.replace("__", "."): value for name, value in changes.items()}
    arm = Arm(method=method, size=values.pop("size", "base"), set=values)
    study = Study(name="papers", arms=(arm,), tasks=(task,), budget="published")
    return plan_with_history(Request(study=study, places=places()), WITHOUT_DATA).plan.arms[0]


def on_demo(*names: str, limit: float | None = None, **sets: Any) -> Plan:
    study = Study(name="here", arms=tuple(Arm(method=name) for name in names), tasks=("demo",), size="nano")
    return make_plan(Request(study=study, places=places(), overrides=UserOverrides(sets=sets), limit=limit))


@pytest.mark.parametrize(("method", "variant"), EVERY)
def test_every_method_and_variant_states_its_level(method: str, variant: str) -> None:
    assert fidelity.published_level(methods.read(method), variant) in NAMED


@pytest.mark.parametrize("method", methods.names())
def test_what_is_close_and_not_exact_names_a_departure(method: str) -> None:
    for name in ("", *variants(methods.read(method))):
        if fidelity.published_level(methods.read(method), name) == "close" and (method, name) != ("beit", "dalle"):
            arm = published(f"{method}:{name}" if name else method)
            assert arm.departures, f"{method}:{name}"


def test_the_list_of_methods_shows_the_levels(tmp_path: Path) -> None:
    shown = {row["method"]: row["fidelity"] for row in rows("methods", (), tmp_path)}
    assert shown["data2vec:as-released"] == shown["deit:none"] == shown["beit:as-released"] == "exact"
    assert shown["beit"] == shown["deit"] == "close"
    assert shown["beit:random-masking"] == "variant"


@pytest.mark.parametrize("method", ["deit:none", "deit:published-teacher", "data2vec:as-released", "beit:as-released"])
def test_the_authors_behaviour_is_exact_and_departs_in_nothing(method: str) -> None:
    arm = published(method)
    assert (arm.fidelity, arm.departures) == ("exact", ())


def test_one_number_of_ones_own_makes_an_exact_arm_close() -> None:
    assert published("deit:none", supervised__lr=1e-3).fidelity == "close"
    assert published("deit:none", supervised__precision="fp32").fidelity == "exact"


def test_a_tokenizer_of_the_tasks_own_pictures_is_a_named_departure_not_a_stand_in() -> None:
    plan = on_demo("beit")
    assert plan.arms[0].fidelity == "close"
    assert any("discrete VAE trained on the task's own pictures" in text for text in plan.arms[0].departures)
    assert not any("discrete VAE" in text for text in published("beit:dalle").departures)


@pytest.mark.parametrize(("method", "part"), [("beit", "tokenizer"), ("deit", "teacher")])
def test_a_part_that_saw_a_handful_of_pictures_is_a_placeholder(method: str, part: str) -> None:
    arm = on_demo(method, limit=200).arms[0]
    assert arm.fidelity == "placeholder"
    assert arm.departures[0] == (
        f"The {part} is a stand-in: it learned from 200 images, because the data were limited."
    )


def test_limited_data_make_no_stand_in_where_nothing_stands_for_something_else() -> None:
    assert on_demo("data2vec", limit=200).arms[0].fidelity == "close"


def test_departures_are_those_of_the_stages_and_the_size_that_an_arm_has() -> None:
    assert not any("Large" in text for text in published("data2vec").departures)
    assert any("Large" in text for text in published("data2vec", size="large").departures)
    assert not any("pixels" in text for text in published("data2vec", task="ade20k").departures)


def test_pixels_of_the_released_code_reach_training_and_scoring() -> None:
    plan = on_demo("data2vec:as-released", "data2vec")
    released, ours = ([plan.stages[key] for key in arm.stages[0].values()] for arm in plan.arms)
    half = (0.5, 0.5, 0.5)
    assert {stage.kind: (stage.protocol.mean, stage.protocol.std) == (half, half) for stage in released} == {
        "pretrain": False,
        "finetune": True,
        "evaluate": True,
    }
    assert [a.key == b.key for a, b in zip(released, ours, strict=True)] == [True, False, False]


def test_a_student_whose_pixels_are_not_its_teachers_is_refused() -> None:
    with pytest.raises(BenchError, match="student and teacher must normalise pixels alike"):
        on_demo("deit", **{"supervised.pixels": "half"})


def with_level(tree: Tree, arm: str, level: str, *departures: str) -> Plan:
    """The plan of a tree in which one arm has this level."""
    changes = {"fidelity": level, "departures": departures}
    arms = tuple(own.model_copy(update=changes) if own.id == arm else own for own in tree.plan.arms)
    return tree.plan.model_copy(update={"arms": arms})


@pytest.fixture(scope="module")
def placeholder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tree, Plan]:
    """A study in which the best arm has a stand-in for a part."""
    tree = build(tmp_path_factory.mktemp("stand-in") / "results", skill={"beit": 1.6}, tasks=("demo",))
    return tree, with_level(tree, "beit-demo", "placeholder", "The tokenizer is a stand-in: it learned from 32 images.")


@pytest.fixture(scope="module")
def placeholder_report(placeholder: tuple[Tree, Plan], tmp_path_factory: pytest.TempPathFactory) -> Report:
    tree, plan = placeholder
    return compare(plan, tree.results, tmp_path_factory.mktemp("stand-in-report") / "demo")


def test_the_report_shows_every_arms_level_and_departures(placeholder_report: Report) -> None:
    body = json.loads((placeholder_report.folder / "report.json").read_text())
    assert {row["arm"]: row["fidelity"] for row in body["arms"]} == {
        "vit-demo": "close",
        "deit-demo": "close",
        "beit-demo": "placeholder",
        "data2vec-demo": "close",
    }
    text = (placeholder_report.folder / "report.md").read_text()
    assert "placeholder" in text and "it learned from 32 images" in text


def test_a_placeholder_is_never_ranked_however_high_it_scores(
    placeholder: tuple[Tree, Plan], placeholder_report: Report
) -> None:
    tree, plan = placeholder
    comparison = analyse(plan, tree.results).comparisons[0]
    assert "beit-demo" not in {score.arm.planned.id for score in comparison.ranked}
    assert "beit-demo" not in comparison.highest()
    whole = analyse(tree.plan, tree.results).comparisons[0]
    assert "beit-demo" in whole.highest()
    body = json.loads((placeholder_report.folder / "report.json").read_text())
    best = {row["arm"] for row in body["arms"] if row["best"]}
    assert best and "beit-demo" not in best
