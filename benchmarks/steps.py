"""Images per second of our training steps beside what one would otherwise run, on the same pictures.

    python benchmarks/steps.py                          # ViT-nano at 48 pixels: about a minute on one core
    python benchmarks/steps.py --size base --steps 20   # ViT-B/16 at 224 pixels, for a GPU

Ours is the real thing: a method's published recipe, its objective, and `Update` with all that it does. The other side
is in `peers.py`. The two of a pair take turns, so that a neighbour on the machine slows both. Reading and cropping are
left out: ours gets uint8 that lies on the device and standardises it in the step, the others get floats. All images
are noise and all networks at their starting weights.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from typing import NamedTuple

import torch
from peers import PEERS, Step

from bench import methods
from bench.config.schema import SIZES, Model, Protocol, Recipe
from bench.config.stage import Stage
from bench.environment import environment
from bench.launch.distributed import connect
from bench.launch.settings import Settings
from bench.methods import Parts, tokenizer
from bench.methods.classification import build_classifier
from bench.methods.masked_images import masking
from bench.pipeline.dataloader import Batch, move_and_normalise
from bench.training.step import Update

PLANNED = {"steps": 100_000, "steps_per_epoch": 1_000}  # a step takes as long wherever in its schedule it is


class Scale(NamedTuple):
    """What goes with a size: as published, or as in the demo."""

    image_size: int = 224
    patch_size: int = 16
    batch_size: int = 64
    classes: int = 1000
    words: int = 8192
    tokenizer_width: int = 256
    teacher: str = "regnety_160"


SCALES = {"nano": Scale(48, 8, 64, 10, 32, 32, "resnet10t"), "tiny": Scale(), "base": Scale()}


def main() -> None:
    """Measure every pair and print one table."""
    options = arguments()
    rows = [row(method, options) for method in options.methods]
    facts = environment()
    threads = f"{torch.get_num_threads()} thread(s) of {facts['cpu']}"
    where = facts["devices"][0] if options.device == "cuda" else threads
    versions = ", ".join(f"{name} {facts['packages'][name]}" for name in ("torch", "transformers", "timm"))
    print(f"{where}; {versions}. ViT-{options.size} at {options.image_size} pixels, batches of {options.batch_size},")
    print(f"{options.precision}; median of {options.rounds} rounds of {options.steps} steps each.\n")
    print("| method | bench, images/s | instead | images/s | ratio |\n|---|--:|---|--:|--:|", *rows, sep="\n")


def arguments() -> argparse.Namespace:
    """The command line; what it leaves open is the size's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--size", choices=SCALES, default="nano")
    parser.add_argument("--image-size", type=int, help="48 for nano, else 224")
    parser.add_argument("--batch-size", type=int, help="64; even, because DeiT mixes images in pairs")
    parser.add_argument("--steps", type=int, default=4, help="in one turn")
    parser.add_argument("--rounds", type=int, default=7, help="turns that each side has")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args()
    scale = SCALES[options.size]
    options.image_size = options.image_size or scale.image_size
    options.batch_size = options.batch_size or scale.batch_size
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def row(method: str, options: argparse.Namespace) -> str:
    """A line of the table."""
    stage, settings = planned(method, options), Settings(device=options.device, threads=torch.get_num_threads())
    device, parts = torch.device(options.device), parents(method, options)
    batch = pictures(stage, device)
    theirs = PEERS[method].step(
        stage, parts, move_and_normalise(batch, device, stage.protocol)
    )  # before `connect` changes timm
    rates = measure((ours(stage, parts, batch, settings), theirs), options)
    ratio = statistics.median(mine / other for mine, other in zip(*rates, strict=True))
    mine, other = map(statistics.median, rates)
    return f"| {methods.read(method).title} | {mine:,.0f} | {PEERS[method].title} | {other:,.0f} | {ratio:.2f} |"


def planned(method: str, options: argparse.Namespace, kind: str = "") -> Stage:
    """A stage as published, but for size, batch and precision: by default the one that is the method's own."""
    defaults, scale = methods.read(method), SCALES[options.size]
    kind = kind or ("supervised" if "supervised" in defaults.stages else "pretrain")
    width, depth, heads = SIZES[options.size]
    model = {key: value for key, value in defaults.model.items() if not isinstance(value, dict)}  # not other stages'
    model |= {"width": width, "depth": depth, "heads": heads, "classes": scale.classes}
    model |= {"image_size": options.image_size, "patch_size": scale.patch_size}
    return Stage(
        kind=kind,
        method=method,
        task="steps",
        model=Model(**model),
        recipe=Recipe(**defaults.recipe[kind] | {"batch_size": options.batch_size, "precision": options.precision}),
        options=defaults.options.get(kind, {}),
        protocol=Protocol(resolution=options.image_size),
    )


def parents(method: str, options: argparse.Namespace) -> Parts:
    """What earlier stages of the method would have trained, at starting weights; both sides of a pair use it."""
    scale = SCALES[options.size]
    if method == "beit":
        stage = planned(method, options, "tokenizer")
        chosen = stage.options | {"words": scale.words, "width": scale.tokenizer_width}
        return {"tokenizer": tokenizer.objective(stage.model_copy(update={"options": chosen}))}
    if method == "deit":
        return {"teacher": build_classifier(Model(trunk=f"timm:{scale.teacher}", classes=scale.classes), Recipe())}
    return {}


def pictures(stage: Stage, device: torch.device) -> Batch:
    """A batch with all that a view gives, on the device."""
    model, images = stage.model, stage.recipe.batch_size
    sides = {"image": model.image_size, "token_image": model.image_size // 2}
    batch = {name: torch.randint(256, (images, 3, side, side), dtype=torch.uint8) for name, side in sides.items()}
    batch["label"] = torch.randint(model.classes, (images,))
    if stage.kind == "pretrain":
        draw = masking(model, stage.options)
        batch["hidden"] = torch.stack([torch.from_numpy(draw().ravel()) for _ in range(images)])
    return {name: value.to(device) for name, value in batch.items()} | {"position": torch.arange(images)}


def ours(stage: Stage, parts: Parts, batch: Batch, settings: Settings) -> Step:
    """The step that `bench run` takes."""
    accelerator = connect(settings)
    objective = methods.load(stage.method).objective(stage, parts).to(accelerator.device).train()
    update = Update(stage, objective, accelerator=accelerator, settings=settings, **PLANNED)
    steps = itertools.count()
    return lambda: update(next(steps), [batch])


def measure(pair: tuple[Step, Step], options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Images per second of both in each round, after one round that warms up."""
    rates: tuple[list[float], list[float]] = ([], [])
    for counted in (False, *[True] * options.rounds):
        for step, speeds in zip(pair, rates, strict=True):
            seconds = timed(step, options.steps, options.device)
            if counted:
                speeds.append(options.steps * options.batch_size / seconds)
    return rates


def timed(step: Step, steps: int, device: str) -> float:
    """Seconds for so many steps, until the device has done them."""
    began = time.perf_counter()
    for _ in range(steps):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
