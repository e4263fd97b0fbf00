"""On every layout of every data set a pretrained network is fine-tuned and scored, by the real worker."""

from pathlib import Path

import layouts
import pandas as pd
import pytest
from layouts import ADE20K, CIFAR, CLASSES, IMAGENET
from small import CLASSIFY, prepared

from bench.config.precedence import UserOverrides
from bench.config.schema import Arm, Study
from bench.config.stage import Plan
from bench.errors import BenchError
from bench.planning.planner import make_plan
from bench.planning.request import Request
from bench.training import worker

TASK = """
kind = "{kind}"
metric = "{metric}"
dataset = "{dataset}"
options = {{ {options} }}
classes = {classes}
decoder = "{decoder}"
image_size = 48
patch_size = 8
supervised_task = "home"
splits = {{ pretrain = "train", train = "train", val = "val" }}

[protocol]
resolution = 48
crop_ratio = 1.0
"""
IMAGENET_TASK = {
    "kind": "classification",
    "metric": "top1",
    "dataset": "imagenet",
    "options": f'classes = "{CLASSES}"',
    "classes": 3,
    "decoder": "",
}
CIFAR_TASK = IMAGENET_TASK | {"dataset": "cifar", "options": "classes = 10", "classes": 10}
ADE_TASK = {
    "kind": "segmentation",
    "metric": "mIoU",
    "dataset": "ade20k",
    "options": "",
    "classes": 150,
    "decoder": "linear",
}
LENGTH = {"epochs": 1, "warmup_epochs": 0, "warmup_steps": 0, "eval_every_epochs": 0, "precision": "fp32"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder for tasks and runs; what a network learned there first is learned once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "scenes"))
        patch.setenv("HF_HOME", str(tmp_path_factory.getbasetemp() / "hub"))
        folder = tmp_path_factory.mktemp("home")
        (folder / "home.toml").write_text(CLASSIFY.replace("images = 64", "images = 16"))
        yield folder


def plan_of(home: Path, data: Path, task: dict, method: str = "data2vec", **values) -> Plan:
    """One arm: it learns the scenes of demo first, for two steps, and then the task's labels."""
    (home / "real.toml").write_text(TASK.format(**task))
    sets = {f"{kind}.{name}": value for kind in ("pretrain", "finetune") for name, value in LENGTH.items()}
    sets |= {"pretrain.batch_size": 8, "finetune.batch_size": 3, **values}
    sets |= {"finetune.mixup": 0.0, "finetune.cutmix": 0.0}
    study = Study(name="small", arms=(Arm(method=method),), tasks=("real",), size="nano")
    return make_plan(Request(study=study, places=(home,), overrides=UserOverrides(sets=sets), roots={"": str(data)}))


def learned(home: Path, data: Path, task: dict) -> tuple[dict, pd.DataFrame]:
    """The results of the evaluation, and its rows, after every stage was worked on.

    The same data in another layout are the same stage, which is not computed twice; so each learns at a rate of
    its own.
    """
    own = 1e-3 + 1e-6 * len(list((home / "runs").glob("finetune-*")))
    plan = plan_of(home, data, task, **{"finetune.lr": own})
    runs = prepared(home, plan)
    assert worker.main([str(run.root) for run in runs.values()]) == 0, runs["finetune"].status().error
    assert runs["finetune"].results()["steps"] >= 2
    evaluation = runs["evaluate"]
    return evaluation.results(), pd.read_parquet(evaluation.path("predictions.parquet"))


@pytest.mark.parametrize("layout", IMAGENET)
def test_imagenet_is_learned_and_scored(home, tmp_path, layout):
    results, rows = learned(home, IMAGENET[layout](tmp_path), IMAGENET_TASK)
    written = {photo.name: photo.label for photo in layouts.photos("val")}
    assert dict(zip(rows["id"], rows["label"], strict=True)) == written
    assert results["metrics"]["top1"] == pytest.approx(100 * rows["correct"].mean())


@pytest.mark.parametrize("layout", CIFAR)
def test_cifar_is_learned_and_scored(home, tmp_path, layout):
    results, rows = learned(home, CIFAR[layout](tmp_path, 10), CIFAR_TASK)
    assert results["n"] == len(rows) == 10
    assert sorted(rows["label"]) == list(range(10))


@pytest.mark.parametrize("layout", ADE20K)
def test_ade20k_is_learned_and_scored(home, tmp_path, layout):
    results, rows = learned(home, ADE20K[layout](tmp_path), ADE_TASK)
    assert list(rows["id"]) == [name for name, _, _ in layouts.scenes("val")]
    for (_, labels), counted in zip((layouts.scene("val", n) for n in range(3)), rows["labelled"], strict=True):
        assert sum(counted) == (labels > 0).sum()  # every pixel of a class, at the map's own size
    assert len(results["per_class"]) == 150
    assert "windowpane" in results["per_class"]


def test_the_same_data_in_another_layout_are_the_same_stage(home, tmp_path):
    first, second = (plan_of(home, IMAGENET[name](tmp_path / name), IMAGENET_TASK) for name in ("folders", "shards"))
    assert list(first.stages) == list(second.stages)


def test_a_partial_list_of_classes_is_a_matter_of_the_task_alone(home, tmp_path):
    data = IMAGENET["folders"](tmp_path)
    with pytest.raises(BenchError, match=r"ImageNet-1k has 1,000 classes, a class folder each; it lacks 997"):
        plan_of(home, data, IMAGENET_TASK | {"options": ""})


def test_images_without_labels_are_for_tasks_on_folders(home, tmp_path):
    (home / "real.toml").write_text(TASK.format(**IMAGENET_TASK).replace('supervised_task = "home"', ""))
    study = Study(name="small", arms=(Arm(method="data2vec"),), tasks=("real",), size="nano")
    asked = Request(study=study, places=(home,), roots={"": str(IMAGENET["folders"](tmp_path))}, unlabelled="x")
    with pytest.raises(BenchError, match="--unlabelled is for tasks on folders; real is on imagenet"):
        make_plan(asked)


def test_a_folder_given_for_one_task_serves_another_on_the_same_published_data(home, tmp_path):
    task = TASK.format(**IMAGENET_TASK) + "\n[expects.train]\nimages = 12\n\n[expects.val]\nimages = 6\n"
    (home / "published.toml").write_text(task.replace('supervised_task = "home"', ""))
    (home / "later.toml").write_text('base = "published"\nsupervised_task = "published"\n')
    study = Study(name="small", arms=(Arm(method="vit"),), tasks=("later",), size="nano")
    sets = {"supervised.batch_size": 4, "finetune.batch_size": 4}
    sets |= {f"{kind}.{name}": 0 for kind in ("supervised", "finetune") for name in ("warmup_steps", "warmup_epochs")}
    roots = {"published": str(IMAGENET["shards"](tmp_path))}
    plan = make_plan(Request(study=study, places=(home,), overrides=UserOverrides(sets=sets), roots=roots))
    assert {stage.data["val"].root for stage in plan.stages.values()} == set(roots.values())
