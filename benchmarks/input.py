"""Images per second of our views beside the plain pipelines of torchvision and timm, on one core.

    python benchmarks/input.py                 # about a minute; --images and --rounds for more

The pictures are generated: spectra like those of photographs, 500x375, JPEG of quality 90. All pipelines of a
contest see the same files; they take turns round by round, so that a neighbour on the machine slows all of them,
and the medians over the rounds are reported. Ours hand over uint8, which `normalise` standardises on the device; the
row "and normalised" does that here, in batches of 64.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms as vision
from torchvision.datasets.folder import pil_loader

from bench.config.schema import Model, Protocol, Recipe
from bench.data.source import Source
from bench.data.splits import SplitRequest, open_source
from bench.pipeline.transforms import View, normalise, train_view, two_views

Pipeline = Callable[[Sequence[int]], object]
PROTOCOL = Protocol()
DEIT = Recipe(rand_augment="rand-m9-inc1", random_erasing=0.25)  # no mstd: timm alone then fails at times
BEIT = Recipe(color_jitter=0.4)
BATCH = 64


def main() -> None:
    """Measure and print one table for each contest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=128, help="JPEG files to generate")
    parser.add_argument("--rounds", type=int, default=5, help="times that each pipeline sees every file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BENCH_CACHE"] = f"{folder}/cache"
        paths = [photograph(Path(folder) / f"pictures/{i:04}.jpg", seed=i) for i in range(options.images)]
        source = open_source(SplitRequest("folder", "unlabelled", root=f"{folder}/pictures"))
        scenes = open_source(SplitRequest("demo", "train", limit=max(2, options.images)))
        print(f"One core of {processor()}; median of {options.rounds} rounds over {options.images} images.\n")
        for title, pipelines in contests(paths, source, scenes).items():
            print(table(title, measure(pipelines, options.images, options.rounds)))


def photograph(path: Path, seed: int, width: int = 500, height: int = 375) -> Path:
    """Write a JPEG whose spectrum falls with frequency as that of photographs does."""
    path.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = 1 / np.maximum(frequency, 1 / width) ** 1.2
    planes = [spectrum_to_pixels(amplitude, rng, (height, width)) for _ in range(4)]
    colours = np.stack([128 + 50 * (0.9 * planes[3] + 0.35 * plane) for plane in planes[:3]], axis=-1)
    Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def spectrum_to_pixels(amplitude: np.ndarray, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A plane of unit deviation with these amplitudes and random phases."""
    phases = np.exp(2j * np.pi * rng.random(amplitude.shape))
    plane = np.fft.irfft2(amplitude * phases, s=shape)
    return plane / plane.std()


def contests(paths: Sequence[Path], source: Source, scenes: Source) -> dict[str, dict[str, Pipeline]]:
    """Title -> name -> pipeline; the first of each is the one that the others are compared with."""
    large, small = Model(), Model(image_size=48, patch_size=8)
    read = {"decode only (Pillow)": lambda rows: [pil_loader(paths[i]) for i in rows]}
    return {
        "Random crop to 224 and flip": {
            "torchvision, float": each(paths, torchvision_view()),
            "timm, uint8": each(paths, timm_view(Recipe(), 224, prefetcher=True)),
            "bench, uint8": ours(source, train_view(Recipe(), large, PROTOCOL)),
            "bench, and normalised": ours(source, train_view(Recipe(), large, PROTOCOL), normalised=True),
            **read,
        },
        "DeiT at 224: RandAugment and random erasing": {
            "timm, float": each(paths, timm_view(DEIT, 224)),
            "bench, float": ours(source, train_view(DEIT, large, PROTOCOL)),
        },
        "BEiT's two views, 224 and 112, with colour jitter": {
            "as the authors, float": each(paths, two_views_as_published()),
            "bench, uint8, the same pixels": ours(source, two_views(BEIT, large, PROTOCOL)),
            "bench, and normalised": ours(source, two_views(BEIT, large, PROTOCOL), normalised=True),
        },
        "Demo scenes of 48 pixels, DeiT": {
            "timm, float": drawn(scenes, timm_view(DEIT, 48)),
            "bench, float": ours(scenes, train_view(DEIT, small, PROTOCOL)),
        },
        "Demo scenes of 48 pixels, crop and flip": {
            "timm, uint8": drawn(scenes, timm_view(Recipe(), 48, prefetcher=True)),
            "bench, uint8": ours(scenes, train_view(Recipe(), small, PROTOCOL)),
        },
    }


def each(paths: Sequence[Path], view: Callable[[Image.Image], object]) -> Pipeline:
    """Read a file as torchvision does, then `view`."""
    return lambda rows: [view(pil_loader(paths[i])) for i in rows]


def drawn(scenes: Source, view: Callable[[Image.Image], object]) -> Pipeline:
    """`view` of pictures that need no decoding."""
    return lambda rows: [view(scenes[i]["image"]) for i in rows]


def ours(source: Source, view: View, *, normalised: bool = False) -> Pipeline:
    """Read a sample of ours, then `view`; perhaps standardise the batch here instead of on a device."""

    def run(rows: Sequence[int]) -> object:
        images = [view(source[i])["image"] for i in rows]
        return normalise(torch.stack(images), PROTOCOL.mean, PROTOCOL.std) if normalised else images

    return run


def torchvision_view() -> Callable[[Image.Image], object]:
    """The pipeline of torchvision's ImageNet example, bicubic."""
    return vision.Compose(
        [
            vision.RandomResizedCrop(224, interpolation=vision.InterpolationMode.BICUBIC),
            vision.RandomHorizontalFlip(),
            vision.ToTensor(),
            vision.Normalize(PROTOCOL.mean, PROTOCOL.std),
        ]
    )


def timm_view(recipe: Recipe, size: int, *, prefetcher: bool = False) -> Callable[[Image.Image], object]:
    """timm's own pipeline; with its prefetcher it hands over uint8."""
    return create_transform(
        size,
        is_training=True,
        use_prefetcher=prefetcher,
        color_jitter=None,
        auto_augment=recipe.rand_augment or None,
        interpolation=recipe.interpolation,
        re_prob=recipe.random_erasing,
        re_mode="pixel",
    )


def two_views_as_published() -> Callable[[Image.Image], object]:
    """Jitter and flip of the whole picture, one box, two resized crops, both as float tensors."""
    turn = vision.Compose([vision.ColorJitter(0.4, 0.4, 0.4), vision.RandomHorizontalFlip()])
    student = vision.Compose([vision.ToTensor(), vision.Normalize(PROTOCOL.mean, PROTOCOL.std)])
    token = vision.ToTensor()

    def view(image: Image.Image) -> object:
        image = turn(image)
        box = RandomResizedCropAndInterpolation.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
        bicubic, lanczos = vision.InterpolationMode.BICUBIC, vision.InterpolationMode.LANCZOS
        large = vision.functional.resized_crop(image, *box, [224, 224], bicubic)
        small = vision.functional.resized_crop(image, *box, [112, 112], lanczos)
        return student(large), token(small)

    return view


def measure(pipelines: dict[str, Pipeline], images: int, rounds: int) -> dict[str, float]:
    """Name -> images per second, the median over rounds in which the pipelines take turns."""
    batches = [range(start, min(start + BATCH, images)) for start in range(0, images, BATCH)]
    rates: dict[str, list[float]] = {name: [] for name in pipelines}
    for counted in (False, *[True] * rounds):  # the first round warms up
        for name, pipeline in pipelines.items():
            began = time.perf_counter()
            for rows in batches:
                pipeline(rows)
            if counted:
                rates[name].append(images / (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in rates.items()}


def table(title: str, rates: dict[str, float]) -> str:
    """A markdown table with the ratio to the first row."""
    first = next(iter(rates.values()))
    rows = [f"| {name} | {rate:,.0f} | {rate / first:.2f} |" for name, rate in rates.items()]
    return "\n".join([f"| {title} | images/s | ratio |", "|---|--:|--:|", *rows, ""])


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
