"""The run folders of a small finished study: 4 arms, 2 tasks, 2 seeds, written through the store.

Scores are drawn, not trained: an image is right when a latent ease plus the arm's skill exceeds its difficulty.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.config.schema import Arm, Model, Protocol, Recipe, StageKind, Study
from bench.config.stage import Data, Plan, PlannedArm, Stage
from bench.files import write_json
from bench.runs.run import Record, Run
from bench.runs.store import run_of, save_plan

IMAGES, SEG_IMAGES, PIXELS, GRID, CLASSES, SHOWN = 400, 60, 48, 6, 11, 8
ROLES: dict[str, tuple[StageKind, ...]] = {
    "vit": ("supervised",),
    "deit": ("teacher", "supervised"),
    "beit": ("tokenizer", "pretrain", "finetune"),
    "data2vec": ("pretrain", "finetune"),
}
SKILL = {"vit": 0.0, "deit": 0.35, "beit": 0.9, "data2vec": 0.95}
EPOCHS = {"tokenizer": 8, "teacher": 10, "pretrain": 40, "supervised": 30, "finetune": 20}
IMAGES_PER_EPOCH = {"tokenizer": 8000, "teacher": 1000, "pretrain": 8000, "supervised": 1000, "finetune": 1000}
ENVIRONMENT = {
    "bench": "0.1.0", "git": {"commit": "0123456789abcdef", "dirty": False}, "python": "3.12.1", "cpu": "A CPU",
    "cores": 2, "devices": [], "packages": {"torch": "2.11.0", "timm": "1.0.20"}, "host": "somewhere",
    "command": "bench run demo", "time": "2026-01-01T00:00:00", "variables": {},
}  # fmt: skip


class Tree(NamedTuple):
    """A plan and the output folder with its runs."""

    plan: Plan
    results: Path

    def run(self, arm: str, seed: int, role: str) -> Run:
        """The folder of one stage of an arm."""
        planned = next(a for a in self.plan.arms if a.id == arm)
        return run_of(self.results, self.plan.stages[planned.stages[seed][role]])


def build(results: Path, *, seeds: Sequence[int] = (0, 1), labels: Mapping[str, str] | None = None,
          skill: Mapping[str, float] | None = None, tasks: Sequence[str] = ("demo", "demo-seg")) -> Tree:  # fmt: skip
    """Write a finished study under `results`. labels, skill: by method, over the defaults."""
    stages: dict[str, Stage] = {}
    arms = [_arm(stages, method, task, seeds, (labels or {}).get(method, method)) for task in tasks for method in ROLES]
    study = Study(name="demo", title="Four methods on digits", question="Which is best?", arms=(Arm(method="vit"),))
    plan = Plan(study=study, arms=tuple(arms), stages=stages)
    save_plan(results, plan)
    for stage in stages.values():
        write(Run.open(results / "runs", stage), stage, {**SKILL, **(skill or {})}[stage.method])
    return Tree(plan, results)


def _arm(stages: dict[str, Stage], method: str, task: str, seeds: Sequence[int], label: str) -> PlannedArm:
    by_seed = {seed: _chain(stages, method, task, seed) for seed in seeds}
    return PlannedArm(
        id=f"{method}-{task}", label=label, method=method, variant="", size="nano", task=task, budget="demo",
        metric="mIoU" if task.endswith("seg") else "top1", fidelity="close", stages=by_seed,
    )  # fmt: skip


def _chain(stages: dict[str, Stage], method: str, task: str, seed: int) -> dict[str, str]:
    """The stages of one seed of an arm: a segmentation arm of a supervised method learns from its labels first."""
    keys: dict[str, str] = {}
    kinds = ROLES[method] if not task.endswith("seg") or "finetune" in ROLES[method] else (*ROLES[method], "finetune")
    for kind in (*kinds, "evaluate"):
        learned_here = kind in ("finetune", "evaluate")
        stage = _stage(kind, method, task if learned_here else "demo", seed, keys)
        stages.setdefault(stage.key, stage)
        keys[kind] = stage.key
    return keys


def _stage(kind: StageKind, method: str, task: str, seed: int, keys: Mapping[str, str]) -> Stage:
    parents = {}
    if kind == "evaluate":
        parents = {"model": keys.get("finetune") or keys["supervised"]}
    elif kind == "finetune":
        parents = {"start": keys.get("pretrain") or keys["supervised"]}
    elif kind in ("pretrain", "supervised"):
        parents = {role: keys[role] for role in ("tokenizer", "teacher") if role in keys}
    split = Data(dataset="demo", split="val", identity="digits", images=IMAGES, options={"task": task})
    epochs = EPOCHS.get(kind, 1)
    departs = (
        {"recipe.epochs": (800, epochs), "recipe.lr": (1.5e-3, 1e-3)} if kind in ("pretrain", "supervised") else {}
    )
    return Stage(
        kind=kind, method=method, task=task, seed=0 if kind in ("tokenizer", "teacher") else seed,
        model=Model(width=96, depth=4, heads=3, image_size=PIXELS, patch_size=8, classes=CLASSES),
        recipe=None if kind == "evaluate" else Recipe(epochs=epochs, batch_size=100), protocol=Protocol(),
        data={"val": split}, parents=parents, departures=departs,
    )  # fmt: skip


def write(run: Run, stage: Stage, skill: float) -> None:
    """The run outputs of a finished stage."""
    write_json(run.path("environment.json"), ENVIRONMENT)
    outputs = []
    if stage.kind in ("evaluate", "pretrain", "tokenizer"):
        np.savez_compressed(run.path("pictures.npz"), **pictures(stage, skill))  # type: ignore[arg-type]
        outputs.append("pictures.npz")
    if stage.kind == "evaluate":
        frame, metrics = predictions(stage, skill)
        frame.to_parquet(run.path("predictions.parquet"))
        run.finish(
            {"metrics": metrics, "n": len(frame), "split": "val", "protocol": {}}, [*outputs, "predictions.parquet"]
        )
        return
    run.append(records(stage, skill))
    run.finish(results(stage), outputs)


def results(stage: Stage) -> dict[str, Any]:
    """Costs of a training stage."""
    epochs, per_epoch = EPOCHS[stage.kind], IMAGES_PER_EPOCH[stage.kind]
    seconds = epochs * per_epoch / (1400 if stage.method == "data2vec" else 2000) + stage.seed
    return {
        "steps": epochs * per_epoch // 100, "epochs": epochs, "images": epochs * per_epoch, "seconds": seconds,
        "device_seconds": seconds, "flops": 1e12, "parameters": 480_000 if stage.kind != "tokenizer" else 90_000,
        "trainable": 480_000, "images_per_second": 2000.0, "data_wait": 0.01,
    }  # fmt: skip


def records(stage: Stage, skill: float) -> list[Record]:
    """Losses that fall, accuracies and scores that rise."""
    noise, rows = random.Random(f"{stage.key}"), []
    headline = "mIoU" if stage.task.endswith("seg") else "top1"
    for epoch in range(1, EPOCHS[stage.kind] + 1):
        images, share = epoch * IMAGES_PER_EPOCH[stage.kind], epoch / EPOCHS[stage.kind]
        where = (images // 100, float(epoch), images, images / 2000)
        rows.append(Record(*where, "train", "loss", 2.3 - 1.5 * share**0.5 + noise.gauss(0, 0.03)))
        if stage.kind == "pretrain":
            rows.append(Record(*where, "train", "masked_accuracy", 0.4 * share**0.7))
        if stage.kind in ("finetune", "supervised"):
            value = 25 + (40 + 12 * skill) * share**0.5 + noise.gauss(0, 0.8)
            rows.append(Record(*where, "val", headline, value))
    return rows


def predictions(stage: Stage, skill: float) -> tuple[pd.DataFrame, dict[str, float]]:
    """Per-image results with a difficulty that all arms share, and the scores they give."""
    shared, own = np.random.default_rng(7), np.random.default_rng([stage.seed, int(1000 * skill)])
    if stage.task.endswith("seg"):
        union = shared.integers(0, 60, size=(SEG_IMAGES, CLASSES)).astype(np.int64)
        intersect = (union * np.clip(own.normal(0.45 + 0.1 * skill, 0.12, union.shape), 0, 1)).astype(np.int64)
        frame = pd.DataFrame(
            {"id": [f"scene-{i:04d}" for i in range(SEG_IMAGES)], "intersect": list(intersect), "union": list(union)}
        )
        return frame, {"mIoU": float(100 * np.mean(intersect.sum(0) / union.sum(0))), "mAcc": 61.0, "aAcc": 84.5}
    labels, hardness = shared.integers(0, 10, IMAGES), shared.normal(0, 1, IMAGES)
    right = skill + 0.3 - hardness + own.normal(0, 0.7, IMAGES) > 0
    predicted = np.where(right, labels, (labels + 1) % 10)
    frame = pd.DataFrame({"id": [f"val-{i:05d}" for i in range(IMAGES)], "index": range(IMAGES), "label": labels,
                          "prediction": predicted, "correct": right})  # fmt: skip
    metrics = {"top1": float(100 * right.mean()), "top5": min(99.0, float(100 * right.mean()) + 15)}
    if stage.method == "deit":
        metrics |= {"top1_cls": metrics["top1"] - 0.6, "top1_dist": metrics["top1"] - 0.2}
    return frame, {**metrics, "top1_ema": metrics["top1"] + 0.1}


def pictures(stage: Stage, skill: float) -> dict[str, np.ndarray]:
    """The pictures.npz of a stage: smooth backgrounds with a bright blob instead of digits."""
    shared, own = np.random.default_rng(3), np.random.default_rng([stage.seed, int(1000 * skill)])
    rows, columns = np.mgrid[:PIXELS, :PIXELS] / PIXELS
    centres, tints = shared.uniform(0.25, 0.75, (SHOWN, 2)), shared.uniform(60, 220, (SHOWN, 3, 1, 1))
    blobs = np.stack([(rows - y) ** 2 + (columns - x) ** 2 < 0.04 for y, x in centres])
    images = np.clip(
        tints * (0.5 + 0.5 * rows) + 110 * blobs[:, None] + shared.normal(0, 9, (SHOWN, 3, PIXELS, PIXELS)), 0, 255
    )
    arrays = {"images": images.astype(np.uint8)}
    if stage.kind != "evaluate":
        small = arrays["images"][:, :, ::2, ::2]
        tokenizer = {"words": own.integers(0, 64, (SHOWN, GRID, GRID)), "reconstruction": (small // 32) * 32}
        hidden = {"hidden": own.random((SHOWN, GRID, GRID)) < 0.4} if stage.kind == "pretrain" else {}
        return {**arrays, **hidden, **(tokenizer if stage.method == "beit" else {})}
    if stage.task.endswith("seg"):
        labels = shared.integers(1, CLASSES, SHOWN)
        maps = blobs * labels[:, None, None]
        return {
            **arrays,
            "maps": maps.astype(np.uint8),
            "predicted_maps": np.roll(maps, int(8 - 6 * skill), 2).astype(np.uint8),
        }
    labels = shared.integers(0, 10, SHOWN)
    wrong = own.random(SHOWN) > 0.55 + 0.3 * skill
    attention = blobs[:, ::8, ::8] * (0.5 + skill) + own.random((SHOWN, GRID, GRID)) * 0.4
    return {**arrays, "labels": labels, "predictions": np.where(wrong, (labels + 3) % 10, labels),
            "attention": attention.astype(np.float32)}  # fmt: skip
