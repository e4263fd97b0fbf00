"""What `bench evaluate` reports: intervals, and the published numbers of the same weights."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.config.schema import Arm, Model, Protocol, Study
from bench.config.stage import Data, Plan, PlannedArm, Stage, Start
from bench.reporting import checkpoint_scores, published
from bench.runs.run import Run
from bench.stats.intervals import wilson

BASE = {"size": "base", "image_size": 224}


def evaluation(model: Model | None = None, **changes) -> Stage:
    data = Data(dataset="imagenet", split="val", identity="i", images=50_000)
    body = {
        "kind": "evaluate",
        "method": "checkpoint",
        "task": "imagenet1k",
        "protocol": Protocol(),
        "data": {"val": data},
    }
    start = Start(id="x", digest="0" * 64)
    return Stage(**{**body, "model": model or Model(**BASE), "start": start, **changes})


def summary_of(results: Path, stage: Stage, metrics: dict[str, float], metric: str = "top1", **facts) -> dict:
    """The summary of a finished evaluation that found `metrics`."""
    arm = PlannedArm(
        id="a", label="owner/net", method="checkpoint", variant="", size="base", task=stage.task, budget="",
        metric=metric, fidelity="exact", stages={0: {"evaluate": stage.key}},
    )  # fmt: skip
    study = Study(name="s", arms=(Arm(method="checkpoint"),))
    run = Run.open(results / "runs", stage)
    body = {"metrics": metrics, "n": 50_000, "split": "val", "protocol": stage.protocol.model_dump(mode="json")}
    run.finish({**body, "reportable": True, **facts}, [])
    (summary,) = checkpoint_scores.summaries(Plan(study=study, arms=(arm,), stages={stage.key: stage}), results)
    return summary


def test_an_accuracy_has_wilsons_interval(tmp_path):
    summary = summary_of(tmp_path, evaluation(), {"top1": 83.97, "top5": 96.8, "loss": 0.7})
    assert summary["intervals"] == {name: list(wilson(summary["metrics"][name], 50_000)) for name in ("top1", "top5")}
    text = checkpoint_scores.text([summary])
    assert "top1       83.97 %  (95 %: 83.65 to 84.29)" in text
    assert "short side 256, centre crop 224, bicubic, mean 0.485 0.456 0.406" in text
    assert "loss" not in text


def test_a_mean_iou_has_the_interval_of_other_images(tmp_path):
    stage = evaluation(Model(**BASE, decoder="upernet"), task="ade20k")
    rng = np.random.default_rng(0)
    union = rng.integers(1, 100, (200, 3))
    hits = (union * rng.uniform(0.2, 0.9, union.shape)).astype(int)
    folder = Run.open(tmp_path / "runs", stage).root
    columns = {name: pa.FixedSizeListArray.from_arrays(pa.array(value.ravel()), 3)
               for name, value in (("intersect", hits), ("union", union))}  # fmt: skip
    pq.write_table(pa.table(columns), folder / "predictions.parquet")
    miou = float(100 * (hits.sum(0) / union.sum(0)).mean())
    low, high = summary_of(tmp_path, stage, {"mIoU": miou, "mAcc": 60.0}, "mIoU")["intervals"]["mIoU"]
    assert low < miou < high < low + 6


def test_what_is_not_done_says_how_far_it_is(tmp_path):
    stage = evaluation()
    finished = summary_of(tmp_path, stage, {"top1": 1.0})
    Run.open(tmp_path / "runs", stage).set_status("interrupted", step=10, steps=50_000)
    arm = PlannedArm(
        id="a", label="owner/net", method="checkpoint", variant="", size="base", task="imagenet1k", budget="",
        metric="top1", fidelity="exact", stages={0: {"evaluate": stage.key}},
    )  # fmt: skip
    plan = Plan(study=Study(arms=(Arm(method="checkpoint"),)), arms=(arm,), stages={stage.key: stage})
    assert finished["state"] == "done"
    assert "interrupted; the same command resumes it" in checkpoint_scores.text(
        checkpoint_scores.summaries(plan, tmp_path)
    )


@pytest.mark.parametrize(
    ("source", "model", "values"),
    [
        ("facebook/data2vec-vision-base-ft1k", {}, [83.97, 84.2]),
        ("facebook/deit-base-distilled-patch16-224", {"distilled": True}, [83.4]),
        ("/weights/deit_small_patch16_224.pth", {"size": "small"}, [79.8]),
        ("nobody/knows-this", {}, []),
    ],
)
def test_published_numbers_are_those_of_the_same_kind_of_weights(source, model, values):
    rows = published.read(published.default_path())
    published_for = checkpoint_scores.related(rows, source, evaluation(Model(**{**BASE, **model})), "top1")
    numbers = [row.value for row in published_for]
    assert "data2vec" not in source or numbers[0] == 83.97  # this very checkpoint, on its card
    assert set(values) <= set(numbers)
    assert len(numbers) <= checkpoint_scores.MOST_PUBLISHED
    assert bool(numbers) == bool(values)
