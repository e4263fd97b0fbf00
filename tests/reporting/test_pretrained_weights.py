"""An arm that starts from pretrained weights: their cost is unknown, and never counted as 0."""

import math
from dataclasses import replace

import pandas as pd
import pytest
from compare_tree import Tree

from bench.config.stage import Start
from bench.reporting.analysis import convergence, curves, tables
from bench.reporting.analysis.outcomes import Outcomes

START = Start(id="facebook/data2vec-vision-base", digest="ab" * 32, revision="0123")


@pytest.fixture(scope="module")
def outcomes(tree: Tree) -> Outcomes:
    """The tree as if data2vec had begun its pretraining with published weights."""
    outcomes = Outcomes(tree.plan, tree.results)
    outcomes.stages = {
        key: replace(run, stage=run.stage.model_copy(update={"start": START}))
        if (run.stage.method, run.stage.kind) == ("data2vec", "pretrain")
        else run
        for key, run in outcomes.stages.items()
    }
    return outcomes


def cost(outcomes: Outcomes, arm: str) -> dict[str, str]:
    row = {"arm": arm, "label": arm, "starts_from": outcomes.pretrained_weights(outcomes.arms[arm].planned)}
    (cells,) = tables.cost_rows(pd.DataFrame([{**row, **tables.costs(outcomes, outcomes.arms[arm])}]))
    return cells


def test_only_the_arm_that_starts_from_them_names_the_weights(outcomes: Outcomes) -> None:
    names = {name: outcomes.pretrained_weights(arm.planned) for name, arm in outcomes.arms.items()}
    assert names["data2vec-demo"] == START.name
    assert names["beit-demo"] == ""


def test_what_they_took_is_said_and_not_counted_as_nothing(outcomes: Outcomes) -> None:
    cells = cost(outcomes, "data2vec-demo")
    assert cells["pretraining epochs"] == "40 plus what facebook/data2vec-vision-base took"
    assert cells["images: with upstream"] == "340 k plus what facebook/data2vec-vision-base took"
    assert cells["images: own stage"] == "20 k"
    assert math.isnan(tables.costs(outcomes, outcomes.arms["data2vec-demo"])["device_hours_all"])
    assert "plus" not in "".join(cost(outcomes, "beit-demo").values())


def test_curves_and_fronts_leave_out_what_is_unknown(outcomes: Outcomes) -> None:
    frame = curves.convergence(outcomes)
    here = frame[frame["arm"] == "data2vec-demo"]
    assert here[["images", "flops", "device_hours"]].isna().all().all()
    assert here["epoch"].notna().all()
    front = convergence.pareto(convergence.arm_curves(frame, outcomes))
    assert not front[(front["arm"] == "data2vec-demo")]["on_front"].any()
    assert front[front["task"] == "demo"].groupby("unit")["on_front"].any().all()
