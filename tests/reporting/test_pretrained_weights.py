"""An arm that goes back to weights from outside: what those took is unknown, and nothing counts it as nothing."""

import math

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
    found = Outcomes(tree.plan, tree.results)
    found.stages = {
        key: held._replace(stage=held.stage.model_copy(update={"start": START}))
        if (held.stage.method, held.stage.kind) == ("data2vec", "pretrain")
        else held
        for key, held in found.stages.items()
    }
    return found


def cost(outcomes: Outcomes, arm: str) -> dict[str, str]:
    row = {"arm": arm, "label": arm, "starts_from": outcomes.outside(outcomes.arms[arm].planned)}
    (found,) = tables.cost_rows(pd.DataFrame([{**row, **tables.costs(outcomes, outcomes.arms[arm])}]))
    return found


def test_only_the_arm_that_goes_back_to_them_names_the_weights(outcomes: Outcomes) -> None:
    named = {name: outcomes.outside(arm.planned) for name, arm in outcomes.arms.items()}
    assert named["data2vec-demo"] == START.name
    assert named["beit-demo"] == ""


def test_what_they_took_is_said_and_not_counted_as_nothing(outcomes: Outcomes) -> None:
    shown = cost(outcomes, "data2vec-demo")
    assert shown["pretraining epochs"] == "40 plus what facebook/data2vec-vision-base took"
    assert shown["images: with upstream"] == "340 k plus what facebook/data2vec-vision-base took"
    assert shown["images: own stage"] == "20 k"
    assert math.isnan(tables.costs(outcomes, outcomes.arms["data2vec-demo"])["device_hours_all"])
    assert "plus" not in "".join(cost(outcomes, "beit-demo").values())


def test_curves_and_fronts_leave_out_what_is_unknown(outcomes: Outcomes) -> None:
    frame = curves.convergence(outcomes)
    here = frame[frame["arm"] == "data2vec-demo"]
    assert here[["images", "flops", "device_hours"]].isna().all().all()
    assert here["epoch"].notna().all()
    front = convergence.pareto(convergence.paths(frame, outcomes))
    assert not front[(front["arm"] == "data2vec-demo")]["on_front"].any()
    assert front[front["task"] == "demo"].groupby("unit")["on_front"].any().all()
