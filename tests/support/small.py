"""Real stages of the real methods, small enough for a test: 64 scenes of each split of demo, a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.config.precedence import UserOverrides
from bench.config.schema import Arm, Study
from bench.config.stage import Plan, Stage
from bench.launch import local
from bench.launch.settings import Resources
from bench.planning.planner import make_plan
from bench.planning.request import Request
from bench.runs.run import Run

TASK = """
kind = "{kind}"
metric = "{metric}"
dataset = "demo"
options = {{ images = 64 }}
classes = {classes}
decoder = "{decoder}"
image_size = 48
patch_size = 8
supervised_task = "{supervised_task}"
splits = {{ pretrain = "pretrain", train = "train", val = "val", minival = "minival" }}

[protocol]
resolution = 48
crop_ratio = 1.0

[recipe.finetune]
mixup = 0.0
cutmix = 0.0
"""
CLASSIFY = TASK.format(kind="classification", metric="top1", classes=10, decoder="", supervised_task="")
SEGMENT = TASK.format(kind="segmentation", metric="mIoU", classes=11, decoder="linear", supervised_task="small")
TRAINED = {
    "vit": ["supervised"],
    "deit": ["teacher", "supervised"],
    "beit": ["tokenizer", "pretrain", "finetune"],
    "data2vec": ["pretrain", "finetune"],
}


def small_plan(folder: Path, method: str, *, task: str = "small", only: str = "", **values: Any) -> Plan:
    """The plan of one arm. values: numbers of every training stage, or `only` of this kind."""
    tasks = folder / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    (tasks / "small.toml").write_text(CLASSIFY)
    (tasks / "small-seg.toml").write_text(SEGMENT)
    kinds = [*TRAINED[method.partition(":")[0]], *(["finetune"] if task == "small-seg" else [])]
    common = {"batch_size": 16, "epochs": 2, "warmup_epochs": 0, "warmup_steps": 0, "checkpoint_every_epochs": 0.75}
    common |= {"eval_every_epochs": 0, "precision": "fp32"}
    sets = {f"{kind}.{name}": value for kind in kinds for name, value in common.items()}
    sets |= {f"{kind}.{name}": value for kind in kinds if only in ("", kind) for name, value in values.items()}
    if method.startswith("deit"):
        sets["teacher.model.trunk"] = "timm:resnet10t"
    if method.startswith("beit"):
        sets |= {"tokenizer.options.words": 32, "tokenizer.options.width": 32}
    study = Study(name="small", arms=(Arm(method=method),), tasks=(task,), size="nano")
    return make_plan(Request(study=study, places=(tasks,), overrides=UserOverrides(sets=sets)))


def prepared(folder: Path, plan: Plan, *, processes: int = 1, micro: int | None = None) -> dict[str, Run]:
    """The run folders of a plan, ready for a worker: stage kind -> run."""
    runs = ready(folder, plan, processes=processes, micro=micro)
    return {stage.kind: runs[key] for key, stage in plan.stages.items()}


def ready(folder: Path, plan: Plan, *, processes: int = 1, micro: int | None = None) -> dict[str, Run]:
    """The run folders of a plan, ready for a worker: key -> run."""
    runs = {key: Run.open(folder / "runs", stage) for key, stage in plan.stages.items()}
    resources = Resources(num_processes=processes, devices="cpu", micro_batch_size=micro)
    for key, stage in plan.stages.items():
        local._prepare(stage, runs[key], runs, local.Slot((), 1), resources)
    return runs


def last_trained(plan: Plan) -> Stage:
    """The stage that is evaluated."""
    (evaluation,) = [stage for stage in plan.stages.values() if stage.kind == "evaluate"]
    return plan.stages[evaluation.parents["model"]]
