"""Two processes take the same steps on the same images as one: weights, losses and scores agree."""

from pathlib import Path

import pytest
from small import prepared, small_plan
from torch import Tensor

from bench.checkpoints.weights import load_weights
from bench.launch import local
from bench.launch.settings import Resources
from bench.runs.run import Run
from bench.training import worker

MIXING = {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "repeats": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "scenes"))


def launch_two(runs: list[Run], known: dict[str, Run], micro: int | None = 4) -> None:
    """Start stages as `bench run` does, on two processes and in parts of four images, and wait."""
    resources = Resources(num_processes=2, devices="cpu", micro_batch_size=micro)
    by_key = known | {run.stage().key: run for run in runs}
    launched = local.start([run.stage() for run in runs], by_key, local.Slot((), 1), resources)
    assert launched.process.wait(timeout=300) == 0, local.stderr_tail(launched)


def assert_same_training(reference: Run, other: Run) -> None:
    losses = [
        [record.value for record in run.records() if record.metric == "loss" and record.split == "train"]
        for run in (reference, other)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for path in reference.path("final").iterdir():
        first, second = effective(path), effective(other.path("final", path.name))
        distances = {name: float((first[name] - second[name]).abs().max()) for name in first}
        worst = max(distances, key=distances.__getitem__)
        assert distances[worst] < 2e-4, (path.name, worst, distances[worst])


def effective(path: Path) -> dict[str, Tensor]:
    """Weights without the keys' biases: they have no effect, their gradient is rounding, which Adam makes large."""
    weights = {name: value.float() for name, value in load_weights(path).items()}
    for name, value in weights.items():
        if name.endswith("attn.qkv.bias"):
            value[len(value) // 3 : 2 * len(value) // 3] = 0
    return weights


def test_learning_from_mixed_images_with_dropped_branches_and_averaged_weights(tmp_path):
    values = {"dropout": 0.1, "drop_path": 0.3, "clip_grad": 1.0, "model_ema": 0.9, **MIXING}
    plan = small_plan(tmp_path, "vit", **values)
    alone, together = prepared(tmp_path / "alone", plan), prepared(tmp_path / "together", plan)
    assert worker.main([str(alone[kind].root) for kind in ("supervised", "evaluate")]) == 0
    launch_two([together["supervised"], together["evaluate"]], {})
    assert_same_training(alone["supervised"], together["supervised"])
    assert together["supervised"].attempts()[0]["processes"] == 2
    scores = [runs["evaluate"].results() for runs in (alone, together)]
    assert scores[0]["n"] == scores[1]["n"] == 64
    assert scores[0]["metrics"] == pytest.approx(scores[1]["metrics"], rel=1e-3)


@pytest.mark.parametrize("method", ["beit", "data2vec"])
def test_learning_from_hidden_patches(tmp_path, method):
    plan = small_plan(tmp_path, method, only="pretrain", drop_path=0.3)
    alone, together = prepared(tmp_path / "alone", plan), prepared(tmp_path / "together", plan)
    first = [alone[kind] for kind in alone if kind in ("tokenizer", "pretrain")]
    assert worker.main([str(run.root) for run in first]) == 0
    launch_two([together["pretrain"]], {run.stage().key: run for run in first})
    assert_same_training(alone["pretrain"], together["pretrain"])


def test_learning_label_maps_with_batch_norm_over_all_processes(tmp_path):
    values = {
        "optimizer": "sgd",
        "lr": 0.02,
        "drop_path": 0.3,
        "steps": 2,
        "model.decoder": "upernet",
    }  # Adam enlarges the rounding of biases
    plan = small_plan(tmp_path, "vit", task="small-seg", only="finetune", **values)
    alone, together = prepared(tmp_path / "alone", plan), prepared(tmp_path / "together", plan)
    assert worker.main([str(alone[kind].root) for kind in ("supervised", "finetune", "evaluate")]) == 0
    known = {alone["supervised"].stage().key: alone["supervised"]}
    launch_two([together["finetune"], together["evaluate"]], known, micro=None)
    assert_same_training(alone["finetune"], together["finetune"])
    scores = [runs["evaluate"].results() for runs in (alone, together)]
    assert scores[0]["n"] == scores[1]["n"] == 64
    assert scores[0]["metrics"] == pytest.approx(scores[1]["metrics"], rel=1e-2)
