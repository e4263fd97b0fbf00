"""A claim is supported when the interval says so, and by nothing less."""

from pathlib import Path

import pytest
from compare_tree import Tree, build
from typer.testing import CliRunner

from bench.cli.app import app
from bench.config.stage import Plan
from bench.errors import BenchError
from bench.reporting.analysis import claims
from bench.reporting.analysis.claims import Evidence
from bench.reporting.analysis.findings import analyse
from bench.runs.store import save_plan


def claiming(plan: Plan, *texts: str) -> Plan:
    return plan.model_copy(update={"study": plan.study.model_copy(update={"claims": texts})})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return build(tmp_path_factory.mktemp("claims") / "results", tasks=("demo",), seeds=(0, 1, 2))


def evidence(tree: Tree, *texts: str) -> list[Evidence]:
    return analyse(claiming(tree.plan, *texts), tree.results).claims


def test_claims_are_read_as_people_write_them() -> None:
    claim = claims.parse("beit > deit on imagenet1k/top1 by 0.5")
    assert (claim.first, claim.second, claim.alike, claim.points) == ("beit", "deit", False, 0.5)
    assert (claim.task, claim.metric) == ("imagenet1k", "top1")
    turned = claims.parse("deit < beit")
    assert (turned.first, turned.second, turned.alike) == ("beit", "deit", False)
    equivalent = claims.parse("data2vec ~ beit:pixels within .2")
    assert (equivalent.first, equivalent.second, equivalent.alike) == ("data2vec", "beit:pixels", True)
    assert equivalent.points == 0.2


@pytest.mark.parametrize(
    "text", ["beit deit", "beit > deit within 0.2", "beit ~ deit by 1", "beit ~ deit", "beit > deit by 1.2.3", "> deit"]
)
def test_a_claim_that_cannot_be_read_is_quoted(text: str) -> None:
    with pytest.raises(BenchError, match="the claim") as caught:
        claims.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("biet > vit", "Did you mean beit?"), ("beit > vit on dmo", "Did you mean demo?"),
     ("beit > vit on demo/mIoU", "measured by top1")],
)  # fmt: skip
def test_a_claim_about_what_is_not_there_offers_the_nearest(tree: Tree, text: str, message: str) -> None:
    with pytest.raises(BenchError, match="the claim") as caught:
        claims.check(claiming(tree.plan, text))
    assert message in str(caught.value)
    assert repr(text) in str(caught.value)


def test_a_large_difference_supports_a_claim_and_a_larger_claim_it_does_not(small: Tree) -> None:
    modest, bold = evidence(small, "beit > vit by 5", "beit > vit by 40")
    assert modest.supported
    assert modest.low > 5
    assert not bold.supported
    assert bold.difference == modest.difference
    assert modest.sentence.startswith("supported: beit")


def test_a_claim_the_wrong_way_round_is_not_supported(small: Tree) -> None:
    (claim,) = evidence(small, "vit > beit")
    assert not claim.supported
    assert claim.difference < 0


def test_being_alike_takes_more_than_not_being_told_apart(small: Tree) -> None:
    narrow, wide = evidence(small, "data2vec ~ beit within 0.1", "data2vec ~ beit within 20")
    assert (narrow.supported, wide.supported) == (False, True)


def test_a_claim_without_a_task_is_about_every_task(tree: Tree) -> None:
    assert [claim.task for claim in evidence(tree, "beit > vit")] == ["demo", "demo-seg"]


def test_a_claim_about_an_arm_without_a_score_is_not_supported(results: Path) -> None:
    tree = build(results, tasks=("demo",), seeds=(0,))
    tree.run("beit-demo", 0, "evaluate").path("stage.json").unlink()
    (claim,) = evidence(tree, "beit > vit")
    assert not claim.supported
    assert "no score yet" in claim.sentence


def test_check_leaves_with_three_when_a_claim_is_not_supported(small: Tree) -> None:
    for text, code in (("beit > vit", 0), ("vit > beit", 3)):
        save_plan(small.results, claiming(small.plan, text))
        result = CliRunner().invoke(app, ["compare", "demo", "--check", "--output-dir", str(small.results)])
        assert result.exit_code == code
        assert f"claim {text!r} on demo" in result.output
