"""Rows with different protocols are not subtracted, and the cell says what differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare_tree import Tree, build

from bench.config.schema import Arm, Recipe
from bench.config.stage import Data, Plan, Stage, Start
from bench.errors import BenchError
from bench.reporting.analysis.comparability import Guard
from bench.reporting.analysis.comparisons import Comparison, compare_arms
from bench.reporting.analysis.outcomes import Outcomes

Change = Callable[[Stage], Mapping[str, Any]]


def changed(plan: Plan, method: str, change: Change, kinds: tuple[str, ...] = ("finetune", "evaluate")) -> Plan:
    """The plan with other values in a method's stages; keys stay, so that the runs on disk are found."""
    stages = {
        key: stage.model_copy(update=dict(change(stage))) if stage.method == method and stage.kind in kinds else stage
        for key, stage in plan.stages.items()
    }
    return plan.model_copy(update={"stages": stages})


def resolution(stage: Stage) -> dict[str, Any]:
    return {"protocol": stage.protocol.model_copy(update={"resolution": 384})}


def decoder(name: str) -> Change:
    return lambda stage: {"model": stage.model.model_copy(update={"decoder": name})}


def train_on(dataset: str) -> Change:
    return lambda stage: {"data": {"train": Data(dataset=dataset, split="train", identity="x", images=9)}}


def varied(plan: Plan, **changes: Any) -> Plan:
    """The plan of a study whose second arm sets values of its own."""
    arms = (Arm(method="vit"), Arm(method="beit", set=changes))
    return plan.model_copy(update={"study": plan.study.model_copy(update={"arms": arms})})


def outcomes_of(plan: Plan, tree: Tree) -> Outcomes:
    """What the runs of the tree say, as if they had been made by this plan."""
    outcomes = Outcomes(tree.plan, tree.results)
    outcomes.plan = plan
    outcomes.stages = {key: replace(run, stage=plan.stages[key]) for key, run in outcomes.stages.items()}
    return outcomes


def guard(plan: Plan, tree: Tree, allow: tuple[str, ...] = ()) -> Guard:
    return Guard(outcomes_of(plan, tree), allow)


def test_arms_of_one_protocol_may_be_subtracted(tree: Tree) -> None:
    assert guard(tree.plan, tree).conflicts("vit-demo", "beit-demo") == {}


def test_another_resolution_is_named(tree: Tree) -> None:
    conflicts = guard(changed(tree.plan, "beit", resolution), tree).conflicts("vit-demo", "beit-demo")
    assert conflicts == {"resolution": "resolution 224 vs 384"}


def test_another_decoder_is_named(tree: Tree) -> None:
    plan = changed(changed(tree.plan, "beit", decoder("upernet")), "data2vec", decoder("setr-pup"))
    conflicts = guard(plan, tree).conflicts("beit-demo-seg", "data2vec-demo-seg")
    assert conflicts == {"decoder": "decoder UperNet vs SETR-PUP"}


def test_other_pretraining_data_are_named(tree: Tree) -> None:
    plan = changed(tree.plan, "data2vec", train_on("imagenet"), ("pretrain",))
    plan = changed(plan, "beit", train_on("imagenet22k"), ("pretrain",))
    conflicts = guard(plan, tree).conflicts("data2vec-demo", "beit-demo")
    assert conflicts == {"pretraining data": "pretraining data IN-1k vs IN-22k"}


def test_the_data_of_pretrained_weights_are_known_by_their_name(tree: Tree) -> None:
    def start(name: str) -> Change:
        return lambda stage: {"start": Start(id=name, digest="0" * 64)}

    plan = changed(tree.plan, "beit", start("microsoft/beit-base-patch16-224-pt22k"), ("pretrain",))
    plan = changed(plan, "data2vec", start("my/weights"), ("pretrain",))
    conflicts = guard(plan, tree).conflicts("beit-demo", "data2vec-demo")
    assert conflicts == {"pretraining data": "pretraining data IN-22k vs unknown (weights my/weights)"}


def test_what_the_study_varies_is_no_obstacle(tree: Tree) -> None:
    plan = varied(changed(tree.plan, "beit", resolution), **{"protocol.resolution": 384})
    assert guard(plan, tree).conflicts("vit-demo", "beit-demo") == {}


def test_a_key_that_is_allowed_is_a_footnote(tree: Tree) -> None:
    plan = changed(tree.plan, "beit", resolution)
    assert guard(plan, tree).split_conflicts("vit-demo", "beit-demo") == (("resolution 224 vs 384",), ())
    assert guard(plan, tree, ("resolution",)).split_conflicts("vit-demo", "beit-demo") == (
        (),
        ("resolution 224 vs 384",),
    )


def test_an_unknown_key_offers_the_nearest(tree: Tree) -> None:
    with pytest.raises(BenchError, match="Did you mean resolution"):
        guard(tree.plan, tree, ("resolutoin",))
    assert guard(tree.plan, tree, ("Pretraining_Data",)).allow == {"pretraining data"}


def compared(plan: Plan, tree: Tree, allow: tuple[str, ...] = ()) -> Comparison:
    outcomes = outcomes_of(plan, tree)
    guard = Guard(outcomes, allow)
    return compare_arms("demo", outcomes.of_task("demo"), 1000, outcomes=outcomes, guard=guard)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return build(tmp_path_factory.mktemp("guard") / "results", tasks=("demo",))


def test_the_cell_of_such_rows_has_no_number(small: Tree) -> None:
    plan = changed(small.plan, "data2vec", resolution)
    comparison = compared(plan, small)
    difference = comparison.between("beit-demo", "data2vec-demo")
    assert (difference.verdict, difference.conflicts) == ("not comparable", ("resolution 224 vs 384",))
    assert np.isnan([difference.value, difference.p, *difference.interval]).all()
    assert "beit-demo" not in comparison.like_best()
    allowed = compared(plan, small, ("resolution",)).between("beit-demo", "data2vec-demo")
    assert allowed.allowed == ("resolution 224 vs 384",)
    assert not np.isnan(allowed.value)


def test_the_test_of_a_pair_does_not_pay_for_pairs_that_are_not_compared(small: Tree) -> None:
    whole = compared(small.plan, small)
    fewer = compared(changed(small.plan, "data2vec", resolution), small)
    assert fewer.between("vit-demo", "deit-demo").p == whole.between("vit-demo", "deit-demo").p
    assert fewer.between("deit-demo", "beit-demo").p_adjusted <= whole.between("deit-demo", "beit-demo").p_adjusted


def limited(stage: Stage) -> dict[str, Any]:
    return {"data": {"val": stage.data["val"].model_copy(update={"limit": 100.0})}}


def best_on_test(stage: Stage) -> dict[str, Any]:
    data = {**stage.data, "minival": stage.data["val"]}
    return {"data": data, "recipe": stage.recipe and Recipe(select="best")}


@pytest.mark.parametrize(
    ("change", "message"), [(limited, "--limit"), (best_on_test, "best on test")], ids=["limit", "best on test"]
)
def test_what_is_not_reportable_is_not_ranked_with_what_is(small: Tree, change: Change, message: str) -> None:
    comparison = compared(changed(small.plan, "data2vec", change), small)
    (score,) = comparison.unranked
    assert score.arm.planned.id == "data2vec-demo"
    assert any(message in reason for reason in score.not_ranked_because)
    assert "data2vec-demo" not in comparison.highest()
    assert comparison.between("beit-demo", "data2vec-demo").verdict == "not comparable"


def test_placeholder_parts_and_what_a_run_says_of_itself_are_reasons(results: Path) -> None:
    tree = build(results, tasks=("demo",), seeds=(0,))
    arms = tuple(a.model_copy(update={"fidelity": "placeholder"}) if a.method == "vit" else a for a in tree.plan.arms)
    run = tree.run("deit-demo", 0, "evaluate")
    stated = {"reportable": False, "not_reportable_because": ["toy scale"]}
    run.finish({**run.results(), **stated}, ["predictions.parquet", "pictures.npz"])
    reasons = guard(tree.plan.model_copy(update={"arms": arms}), tree).reasons
    assert reasons == {
        "vit-demo": ("placeholder parts",), "deit-demo": ("toy scale",), "beit-demo": (), "data2vec-demo": ()
    }  # fmt: skip


def test_rows_none_of_which_is_reportable_are_ranked_among_themselves(small: Tree) -> None:
    plan = small.plan
    for method in ("vit", "deit", "beit", "data2vec"):
        plan = changed(plan, method, limited)
    comparison = compared(plan, small)
    assert len(comparison.ranked) == 4
    assert all(difference.conflicts == () for difference in comparison.differences)


def test_every_row_carries_its_fingerprint(small: Tree) -> None:
    frame = guard(changed(small.plan, "beit", resolution), small).frame().set_index("label")
    assert frame.loc["vit", "fingerprint"] == frame.loc["deit", "fingerprint"] != frame.loc["beit", "fingerprint"]
    assert frame.loc["beit", "resolution"] == "384"
