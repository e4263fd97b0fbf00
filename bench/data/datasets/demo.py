"""Scenes composed from scikit-learn's handwritten digits: real scans, nothing to download.

A scene shows one large digit, which is its class, among smaller ones, on a textured, coloured, cluttered ground,
partly occluded by bars. In its label map 0 is the ground and 1 to 10 are the digits 0 to 9.

The 1,797 scans (8x8, 16 grey levels; Alpaydin and Kaynak, UCI, as shipped in scikit-learn) are divided among the
splits before any scene is drawn, so no scan of one split appears in another. A scene is a pure function of
(split, index). The scenes of a split are drawn once, into a file under BENCH_CACHE that all processes share.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.config.stage import digest
from bench.errors import BenchError, unknown

VERSION = 1  # raise when a scene would look different
SIDE = 48  # pixels
CLASSES = tuple(str(digit) for digit in range(10))
SCANS = {"pretrain": (0, 800), "train": (800, 1150), "minival": (1150, 1300), "val": (1300, 1797)}  # shuffled scans
IMAGES = {"pretrain": 15_000, "train": 500, "minival": 500, "val": 2_000}


def open_split(split: str, root: str | None = None, images: int = 0) -> DigitScenes:
    """The scenes of a split; `images` other than 0 takes that many. `root` is not used: there are no files."""
    return DigitScenes(split, images)


class DigitScenes:
    """One split: images of 48x48, a class each (none in `pretrain`), and a label map each."""

    dataset = "demo"

    def __init__(self, split: str, images: int = 0) -> None:
        if split not in SCANS:
            raise unknown("split of demo", split, SCANS)
        if images < 0:
            raise BenchError(f"demo: images = {images} is negative; 0 means the {IMAGES[split]:,} of the split")
        self.split = split
        self.images = images or IMAGES[split]
        self.classes = () if split == "pretrain" else CLASSES
        self._rows: np.ndarray | None = None  # opened at the first image: `identity` draws nothing

    def __len__(self) -> int:
        return self.images

    def name(self, index: int) -> str:
        """Identifier of a scene, the same for ever."""
        return f"{self.split}/{index:05d}"

    def identity(self) -> str:
        """Hash of everything that determines the images."""
        return digest(["demo", VERSION, SIDE, self.split, SCANS[self.split], self.images])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": RGB, "label": class or -1, "map": (48, 48) uint8}."""
        if self._rows is None:
            self._rows = _rows(self.split, self.images)
        row = self._rows[index]
        pixels = row[: SIDE * SIDE * 3].reshape(SIDE, SIDE, 3)
        labels = row[SIDE * SIDE * 3 : -1].reshape(SIDE, SIDE)
        return {  # copies: the row is a view of the mapped file
            "image": Image.fromarray(np.array(pixels)),
            "label": int(row[-1]) if self.classes else -1,
            "map": np.array(labels),
        }


def _rows(split: str, images: int) -> np.ndarray:
    """All scenes of a split, memory-mapped: (images, pixels + map + class) uint8."""
    width = SIDE * SIDE * 4 + 1
    folder = Path(os.environ.get("BENCH_CACHE") or Path.home() / ".cache" / "bench")
    path = folder / f"demo-{VERSION}-{split}-{images}-{_source_hash()}.npy"
    if not path.exists() or path.stat().st_size < images * width:
        rows = np.stack([_row(split, index) for index in range(images)])
        _save(rows, path)
    return np.load(path, mmap_mode="r")


def _save(rows: np.ndarray, path: Path) -> None:
    """Write under a temporary name, then rename: a process that starts meanwhile sees all or nothing."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, rows)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise BenchError(f"cannot save the demo scenes in {path.parent}: {error}; set BENCH_CACHE elsewhere") from None


@lru_cache(maxsize=1)
def _source_hash() -> str:
    """Hash of this file: code that draws other scenes must not read those of an older version."""
    return hashlib.blake2b(Path(__file__).read_bytes(), digest_size=6).hexdigest()


@lru_cache(maxsize=1)
def _scans() -> tuple[np.ndarray, np.ndarray]:
    """Scans (1797, 8, 8) uint8 0..255 and their digits, in a fixed random order."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.Generator(np.random.Philox(key=20_260_101)).permutation(len(digits.target))
    grey = np.clip(digits.images * 16.0, 0, 255).astype(np.uint8)
    return grey[order], digits.target[order].astype(np.uint8)


def _row(split: str, index: int) -> np.ndarray:
    pixels, labels, digit = draw(split, index)
    return np.concatenate([pixels.ravel(), labels.ravel(), np.array([digit], np.uint8)])


def draw(split: str, index: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Draw one scene: pixels (48, 48, 3) uint8, label map (48, 48) uint8, class."""
    # Philox takes a key: every scene has its own stream, and needs no other scene to be drawn before
    rng = np.random.Generator(np.random.Philox(key=[VERSION, list(SCANS).index(split) * 10_000_000 + index]))
    canvas = _ground(rng)
    labels = np.zeros((SIDE, SIDE), np.uint8)
    for _ in range(rng.integers(0, 3)):
        _paint_digit(canvas, labels, rng, split, side=rng.uniform(10, 14), reach=1.0)
    digit = _paint_digit(canvas, labels, rng, split, side=rng.uniform(28, 40), reach=0.4)
    for _ in range(rng.integers(0, 2)):
        _paint_bar(canvas, labels, rng)
    canvas += rng.normal(0, 4, canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8), labels, digit


def _ground(rng: np.random.Generator) -> np.ndarray:
    """A coloured ground of soft blotches, finer grain and stripes: (48, 48, 3) float."""
    canvas = np.empty((SIDE, SIDE, 3), np.float64)
    canvas[:] = rng.uniform(10, 80) + rng.normal(0, 15, 3)
    for cells, strength in ((4, 16), (12, 7)):
        noise = rng.normal(0, strength, (cells, cells, 3))
        planes = [Image.fromarray(noise[..., c].astype(np.float32)) for c in range(3)]
        canvas += np.stack([np.asarray(p.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for p in planes], axis=-1)
    y, x = np.mgrid[:SIDE, :SIDE]
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 14)
    wave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * 2 * np.pi / period + rng.uniform(0, 2 * np.pi))
    return canvas + wave[..., None] * rng.normal(0, 5, 3)


def _paint_digit(
    canvas: np.ndarray, labels: np.ndarray, rng: np.random.Generator, split: str, *, side: float, reach: float
) -> int:
    """Paint one scan, rotated, sheared, scaled to `side` pixels, in a random light colour; return its digit.

    reach: how far from the middle it may lie, as a share of the room that its size leaves.
    """
    scans, digits = _scans()
    which = rng.integers(*SCANS[split])
    centre = SIDE / 2 + rng.uniform(-reach, reach, 2) * (SIDE - side) / 2
    ink = _warped(scans[which], side=side, centre=centre, angle=rng.uniform(-0.25, 0.25), shear=rng.uniform(-0.2, 0.2))
    colour = np.clip(rng.uniform(180, 250) + rng.normal(0, 18, 3), 120, 255)
    canvas += ink[..., None] * (colour - canvas)
    labels[ink > 0.5] = digits[which] + 1
    return int(digits[which])


def _warped(scan: np.ndarray, *, side: float, centre: np.ndarray, angle: float, shear: float) -> np.ndarray:
    """The scan's ink on the canvas after an affine transform: (48, 48), 0 to 1."""
    scale = 8 / side
    cos, sin = np.cos(angle), np.sin(angle)
    turn = scale * np.array([[cos, sin], [-sin, cos]]) @ np.array([[1, shear], [0, 1]])
    offset = np.array([4.0, 4.0]) - turn @ centre
    coefficients = (*turn[0], offset[0], *turn[1], offset[1])
    ink = Image.fromarray(scan).transform(
        (SIDE, SIDE), Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BICUBIC
    )
    return np.clip(np.asarray(ink) / 160.0, 0, 1)


def _paint_bar(canvas: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> None:
    """Paint a straight bar across the scene, over what lies there."""
    y, x = np.mgrid[:SIDE, :SIDE]
    angle = rng.uniform(0, np.pi)
    distance = np.cos(angle) * (x - rng.uniform(8, 40)) + np.sin(angle) * (y - rng.uniform(8, 40))
    bar = np.abs(distance) < rng.uniform(0.8, 2.2)
    canvas[bar] = rng.uniform(20, 235, 3)
    labels[bar] = 0
