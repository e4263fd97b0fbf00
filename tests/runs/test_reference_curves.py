"""Curves that others saw: read with their sources, and a run far outside their band is told while it trains."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bench.config.schema import Model, Protocol, Recipe
from bench.config.stage import Data, Stage
from bench.errors import BenchError
from bench.runs import reference_curves
from bench.runs.reference_curves import Watch
from bench.runs.run import Run
from bench.training.journal import Journal

ROW = 'beit,dalle,base,imagenet,pretrain,300,loss,{epoch},{value},{low},{high},known,"github.com/a/b, issue 1"\n'


def stage(**changes: object) -> Stage:
    """BEiT-B with DALL-E's words for 300 epochs, as in the table."""
    data = {"train": Data(dataset="imagenet", split="train", identity="x", images=1000)}
    facts = {
        "kind": "pretrain", "method": "beit", "variant": "dalle", "task": "imagenet1k", "model": Model(size="base"),
        "recipe": Recipe(epochs=300), "protocol": Protocol(), "data": data,
    }  # fmt: skip
    return Stage(**{**facts, **changes})  # type: ignore[arg-type]


def table(path: Path, *rows: str) -> Path:
    path.write_text(",".join(reference_curves.COLUMNS) + "\n" + "".join(rows))
    return path


def test_the_table_of_the_project_is_valid_and_begins_at_chance() -> None:
    rows = reference_curves.read(reference_curves.default_path())
    loss = reference_curves.of_stage(stage(), rows)["loss"]
    assert loss[0].value == pytest.approx(math.log(8192), abs=1e-3)
    assert (loss[-1].epoch, loss[-1].value) == (299, 6.2994)
    assert reference_curves.of_stage(stage(), rows)["masked_accuracy"][-1].value == 0.0496


@pytest.mark.parametrize(
    "changes", [{"variant": ""}, {"method": "data2vec"}, {"recipe": Recipe(epochs=800)}, {"model": Model(size="large")}]
)
def test_references_hold_for_the_same_training_only(changes: dict[str, object]) -> None:
    assert reference_curves.of_stage(stage(**changes), reference_curves.read(reference_curves.default_path())) == {}


@pytest.mark.parametrize(
    ("row", "message"),
    [(ROW.format(epoch=1, value=2, low=3, high=4), "outside its own band"),
     (ROW.format(epoch=1, value="x", low=3, high=4), "could not convert"),
     (ROW.format(epoch=1, value=2, low=1, high=4).replace("github.com/a/b, issue 1", "memory"), "no paper or file")],
)  # fmt: skip
def test_a_wrong_row_is_refused_with_its_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(BenchError, match="line 2") as caught:
        reference_curves.read(table(tmp_path / "r.csv", row))
    assert message in str(caught.value)


def test_between_two_known_epochs_the_band_is_straight(tmp_path: Path) -> None:
    path = table(tmp_path / "r.csv", ROW.format(epoch=0, value=9, low=6, high=10),
                 ROW.format(epoch=200, value=7, low=6, high=8))  # fmt: skip
    rows = reference_curves.read(path)
    assert reference_curves.band(rows, 50) == pytest.approx((6, 9.5))
    assert reference_curves.band(rows, 290) == (6, 8)
    assert reference_curves.deviation(rows, 100, 8.9) == ""
    assert "loss 9.1 at epoch 100 is above the band" in reference_curves.deviation(rows, 100, 9.1)
    assert reference_curves.deviation(rows, 3, 50.0) == ""  # too early to say


def test_a_run_that_leaves_the_band_is_told_once_and_in_its_progress(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.root.mkdir()
    lengths = {"steps": 300, "steps_per_epoch": 1, "images_per_step": 1}
    journal = Journal(run, stage="pretrain", writes=True, watch=Watch(stage()), **lengths)
    for epoch, loss in ((100, 7.0), (200, 8.9), (250, 8.9), (299, 6.3)):
        journal.record(epoch, 1.0, "train", {"loss": loss})
        if epoch == 250:
            assert "above the band" in journal.watch.warning
    (event,) = run.attempts()
    assert event["event"] == "warning"
    assert "loss 8.9 at epoch 200" in event["told"]
    assert journal.watch.warning == ""


def test_a_finished_run_is_judged_by_its_last_values() -> None:
    rows = reference_curves.read(reference_curves.default_path())
    healthy = [("loss", 100.0, 9.0), ("loss", 299.0, 6.3), ("masked_accuracy", 299.0, 0.05)]
    assert reference_curves.last_deviations(stage(), healthy, rows) == []
    (deviation,) = reference_curves.last_deviations(stage(), [*healthy, ("masked_accuracy", 300.0, 0.01)], rows)
    assert deviation.startswith("masked_accuracy 0.01 at epoch 300 is below the band")
