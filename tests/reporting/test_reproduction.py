"""A measured number beside a published one: reproduced, above, below, or not comparable, and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from compare_tree import Tree, build

from bench.errors import BenchError
from bench.reporting.analysis import reproduction
from bench.reporting.analysis.comparability import Guard
from bench.reporting.analysis.comparisons import compare_arms
from bench.reporting.analysis.outcomes import Outcomes
from bench.reporting.published import Published


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return build(tmp_path_factory.mktemp("verdicts") / "results", tasks=("demo",))


def row(**changes: object) -> Published:
    """A published row under the conditions of the tree's ViT."""
    facts = {
        "id": "vit-demo", "method": "vit", "variant": "", "size": "nano", "resolution": 224, "pretraining_data": "none",
        "pretraining_epochs": "0", "task": "demo", "protocol": "from scratch", "metric": "top1", "value": 64.0,
        "source": "arXiv 2010.11929, Table 5", "kind": "quoted", "verified": False,
    }  # fmt: skip
    return Published(**{**facts, **changes})  # type: ignore[arg-type]


def verdict_on(tree: Tree, published: Published, method: str = "vit", link: str = "vit-demo") -> dict[str, object]:
    """The verdict on one arm that is linked to a row, whose stages depart from nothing."""
    arms = tuple(a.model_copy(update={"published": link if a.method == method else ""}) for a in tree.plan.arms)
    outcomes = Outcomes(tree.plan, tree.results)
    outcomes.plan = tree.plan.model_copy(update={"arms": arms})
    whole = {key: run.stage.model_copy(update={"departures": {}}) for key, run in outcomes.stages.items()}
    outcomes.stages = {key: replace(run, stage=whole[key]) for key, run in outcomes.stages.items()}
    comparison = compare_arms("demo", outcomes.of_task("demo"), 200, outcomes=outcomes)
    (verdict,) = reproduction.verdicts(outcomes, [comparison], Guard(outcomes), [published]).to_dict("records")
    return {str(name): value for name, value in verdict.items()}


def test_a_number_within_the_noise_is_reproduced_and_one_far_away_is_not(small: Tree) -> None:
    measured = verdict_on(small, row())["measured"]
    assert isinstance(measured, float)
    near, low, high = (verdict_on(small, row(value=value)) for value in (measured + 0.3, 30.0, 99.0))
    assert [verdict["verdict"] for verdict in (near, low, high)] == ["reproduced", "above", "below"]
    assert near["difference"] == pytest.approx(-0.3)
    assert near["low"] < -0.3 < near["high"]  # type: ignore[operator]
    assert near["source"] == "arXiv 2010.11929, Table 5"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"resolution": 384}, "resolution 224 vs 384"), ({"size": "base"}, "size nano vs base"),
     ({"pretraining_data": "ImageNet-22k"}, "pretraining data none vs ImageNet-22k"),
     ({"task": "x"}, "task demo vs x")],
)  # fmt: skip
def test_other_conditions_are_not_comparable_and_named(small: Tree, changes: dict[str, object], message: str) -> None:
    verdict = verdict_on(small, row(**changes))
    assert verdict["verdict"] == "not comparable"
    assert message in str(verdict["why"])


def test_a_shorter_training_is_no_reproduction(small: Tree) -> None:
    arms = tuple(a.model_copy(update={"published": "vit-demo" if a.method == "vit" else ""}) for a in small.plan.arms)
    outcomes = Outcomes(small.plan.model_copy(update={"arms": arms}), small.results)
    (verdict,) = reproduction.verdicts(outcomes, [], Guard(outcomes), [row()]).to_dict("records")
    assert verdict["verdict"] == "not measured"
    comparison = compare_arms("demo", outcomes.of_task("demo"), 200, outcomes=outcomes)
    (verdict,) = reproduction.verdicts(outcomes, [comparison], Guard(outcomes), [row()]).to_dict("records")
    assert verdict["verdict"] == "not comparable"
    assert "supervised epochs 30 vs 800" in verdict["why"]


def test_the_published_spread_counts_where_ours_is_smaller(results: Path) -> None:
    tree = build(results, tasks=("imagenet1k",))
    outcomes = Outcomes(tree.plan, tree.results)
    comparison = compare_arms("imagenet1k", outcomes.of_task("imagenet1k"), 200, outcomes=outcomes)
    score = replace(comparison.scores[0], spread=comparison.scores[0].spread._replace(sd=0.001))
    noise = reproduction.power.published_noise("imagenet1k", "top1", "base")
    low, high = reproduction._interval(score, 0.0, noise)
    assert high == pytest.approx(2.776 * ((0.065**2) * 1.5 + 0.05**2 / 3) ** 0.5, rel=1e-3)
    assert low == pytest.approx(-high)


def test_a_link_to_a_row_that_is_not_there_names_the_arm(small: Tree) -> None:
    with pytest.raises(BenchError, match="arm vit"):
        verdict_on(small, row(), link="vit-dmo")
