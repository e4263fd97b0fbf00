"""Tiny real objects for the tests of the loop: numbers as images, a network of two layers, a stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.config.schema import Model, Protocol, Recipe
from bench.config.stage import Data, Stage
from bench.launch.distributed import connect
from bench.launch.settings import Settings
from bench.launch.signals import Stop
from bench.methods.objective import Objective
from bench.runs.run import Run
from bench.training.loop import RunContext, Trainer, TrainingData

IMAGES, CLASSES = 24, 3


class Numbers:
    """Images of 3 x 4 x 4 random pixels; the label is the channel that is brightest on average."""

    dataset, split, classes = "numbers", "train", ("red", "green", "blue")

    def __init__(self, images: int = IMAGES) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (images, 3, 4, 4), generator=generator, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self.pixels[index]
        return {"image": pixels, "label": int(pixels.float().mean((1, 2)).argmax())}

    def name(self, index: int) -> str:
        return f"number/{index}"

    def identity(self) -> str:
        return f"numbers {len(self)}"


def flipped(sample: dict[str, Any]) -> dict[str, Any]:
    """A random view: the picture or its mirror image."""
    image = sample["image"]
    return {**sample, "image": image.flip(-1) if torch.rand(()) < 0.5 else image}


def plain(sample: dict[str, Any]) -> dict[str, Any]:
    """The picture as it is."""
    return dict(sample)


class Toy(Objective):
    """Two layers with dropout between them. `items` of an image, for which its loss counts, is its label + 1."""

    def __init__(self, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Linear(48, 8)
            self.norm = nn.BatchNorm1d(8) if dropout else nn.Identity()
            self.head = nn.Linear(8, CLASSES)
        self.dropout = nn.Dropout(dropout)
        self.progress: list[float] = []

    def predict(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        hidden = self.norm(self.body(batch["image"].flatten(1))).tanh()
        return {"logits": self.head(self.dropout(hidden))}

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        items = batch["label"] + 1.0
        losses = nn.functional.cross_entropy(self.predict(batch)["logits"].float(), batch["label"], reduction="none")
        return {"loss": (losses * items).sum(), "count": items.sum(), "red": (items * (batch["label"] == 0)).sum()}

    def after_step(self, progress: float) -> None:
        self.progress.append(progress)


def stage(images: int = IMAGES, **recipe: Any) -> Stage:
    """A supervised stage on `Numbers`: 8 images a step, 4 epochs of 3 steps, unless said otherwise."""
    numbers: dict[str, Any] = {
        "epochs": 4,
        "batch_size": 8,
        "lr": 0.01,
        "precision": "fp32",
        "checkpoint_every_epochs": 0,
        "eval_every_epochs": 1,
    }
    return Stage(
        kind="supervised",
        method="toy",
        task="toy",
        model=Model(classes=CLASSES, image_size=4, patch_size=2),
        recipe=Recipe(**(numbers | recipe)),
        protocol=Protocol(resolution=4),
        data={"train": Data(dataset="numbers", split="train", identity="numbers", images=images)},
    )


def train_toy(
    folder: Path,
    objective: Objective,
    planned: Stage,
    *,
    stop: Stop | None = None,
    source: Any = None,
    evaluations: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[Run, dict[str, Any]]:
    """Train in this process, in the run folder below `folder`."""
    run, launched_with = Run.open(folder, planned), Settings(**settings)
    data = TrainingData(source or Numbers(planned.data["train"].images), flipped, evaluations or {})
    context = RunContext(run, launched_with, connect(launched_with), stop or Stop())
    return run, Trainer(planned, objective, data, context).train()


class StopAt(Stop):
    """Asks to stop once it was looked at so many times: after that step."""

    def __init__(self, step: int) -> None:
        self.left = step

    @property
    def asked(self) -> bool:  # type: ignore[override]
        self.left -= 1
        return self.left <= 0
