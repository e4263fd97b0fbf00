"""Views for segmentation: the transforms of an image together with its label map.

Source: the published ADE20K pipeline of BEiT's UperNet (B: semantic_segmentation/configs): resize by a random
factor, crop, flip, photometric distortion, pad.

Departs from the reference: images are resampled by Pillow with antialiasing, the reference uses OpenCV without.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.config.schema import Model, Protocol, Recipe
from bench.data.source import Sample
from bench.pipeline.transforms import RESAMPLING, View, as_tensor, coin

LONGEST = 4  # long side over short side at most: (2048, 512)
ZOOM = (0.5, 2.0)  # ratio_range
MOST_OF_ONE_LABEL = 0.75  # cat_max_ratio: no label may cover more of a crop ...
ATTEMPTS = 10  # ... unless all of so many draws fail
MAP = Image.Resampling.NEAREST  # labels must not be averaged


def map_train_view(recipe: Recipe, model: Model, protocol: Protocol, *, zoom: tuple[float, float] = ZOOM) -> View:
    """The view for training on label maps: random resize, crop, flip and photometric distortion.

    {"image": uint8 (C, S, S), "map": uint8 (S, S)} with S the model's image size. The image's short side is
    scaled to S times a factor from `zoom`; a crop smaller than S x S is padded with the mean colour, its map with
    the ignored label. `color_jitter` is the strength of the distortion: 0.5 as published, 0 for none.
    """
    return _MapTrainView(
        size=model.image_size,
        zoom=zoom,
        flip=recipe.flip,
        jitter=recipe.color_jitter,
        resampling=RESAMPLING[recipe.interpolation],
        padding=tuple(round(255 * value) for value in protocol.mean),
        ignore_label=protocol.ignore_label,
    )


def map_eval_view(protocol: Protocol) -> View:
    """The view for scoring label maps: {"image": uint8 (C, h, w), "map": uint8 (H, W)}, and the image at other sizes.

    The short side becomes the protocol's resolution, with the aspect unchanged and nothing cropped; if the protocol
    says `whole`, the image is resized to a square. Other sizes are named as in `sizes`. The map keeps its own size:
    predictions are resized to it, never it to them.
    """
    return _MapEvalView(protocol.resolution, sizes(protocol), protocol.whole, RESAMPLING[protocol.interpolation])


def sizes(protocol: Protocol) -> dict[float, tuple[str, int]]:
    """The scales of an image in evaluation: scale -> its name in a sample, and how often it counts.

    An image is never scaled below the resolution: the published scales 0.5, 0.75 and 1 are one size that
    counts three times (BEiT semantic_segmentation, SETR_Resize with setr_multi_scale).
    """
    times_of = Counter(max(1.0, scale) for scale in protocol.scales)
    return {
        scale: (f"image {scale:g}" if number else "image", times)
        for number, (scale, times) in enumerate(sorted(times_of.items()))
    }


@dataclass(frozen=True)
class _MapTrainView:
    size: int
    zoom: tuple[float, float]
    flip: float
    jitter: float
    resampling: Image.Resampling
    padding: tuple[int, ...]
    ignore_label: int

    def __call__(self, sample: Sample) -> dict[str, Any]:
        image, labels = sample["image"], Image.fromarray(sample["map"])
        factor = _scale_factor(image, self.size) * random.uniform(*self.zoom)
        # the window is found first and cut from the original: the whole image is never resized
        for _ in range(ATTEMPTS):
            size, box = self._window(image.size, factor)
            part = labels.resize(size, MAP, box)
            if self._is_varied(np.asarray(part)):
                break
        image = image.resize(size, self.resampling, box)
        if coin(self.flip):
            image, part = (item.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for item in (image, part))
        if self.jitter:
            image = photometric_distortion(image, self.jitter)
        return {
            "image": as_tensor(_pad(image, self.size, self.padding)),
            "map": torch.from_numpy(np.array(_pad(part, self.size, self.ignore_label))),
        }

    def _window(
        self, size: tuple[int, int], factor: float
    ) -> tuple[tuple[int, int], tuple[float, float, float, float]]:
        """Draw a window of the scaled image: its size, and its box in the image that is not scaled."""
        (width, left, right), (height, top, bottom) = (self._span(side, factor) for side in size)
        return (width, height), (left, top, right, bottom)

    def _span(self, side: int, factor: float) -> tuple[int, float, float]:
        """The window along one axis: its pixels when scaled, its start and end in pixels of the image."""
        scaled = max(1, int(side * factor + 0.5))
        pixels = min(self.size, scaled)
        start = random.randint(0, scaled - pixels)
        # rounding could put the end beyond the image, which Pillow refuses
        return pixels, start / scaled * side, min(side, (start + pixels) / scaled * side)

    def _is_varied(self, labels: np.ndarray) -> bool:
        counts = np.bincount(labels[labels != self.ignore_label])
        return bool(np.count_nonzero(counts) > 1 and counts.max() < MOST_OF_ONE_LABEL * counts.sum())


@dataclass(frozen=True)
class _MapEvalView:
    size: int
    sizes: dict[float, tuple[str, int]]
    whole: bool
    resampling: Image.Resampling

    def __call__(self, sample: Sample) -> dict[str, Any]:
        names = (name for name, _ in self.sizes.values())
        images = {name: self._resize(sample["image"], scale) for name, scale in zip(names, self.sizes, strict=True)}
        return {**images, "map": torch.from_numpy(np.array(sample["map"]))}

    def _resize(self, image: Image.Image, scale: float) -> torch.Tensor:
        short = int(self.size * scale + 0.5)
        if self.whole:
            return as_tensor(image.resize((short, short), self.resampling))
        factor = _scale_factor(image, short)
        width, height = (max(1, int(side * factor + 0.5)) for side in image.size)
        return as_tensor(image.resize((width, height), self.resampling))


def _scale_factor(image: Image.Image, short_side: int) -> float:
    """The factor that scales an image to this short side, or less, so that the long side is at most four times it."""
    return min(short_side / min(image.size), LONGEST * short_side / max(image.size))


def _pad(image: Image.Image, size: int, padding: Any) -> Image.Image:
    """Pad an image, at the right and below, to a square of `size`."""
    if image.size == (size, size):
        return image
    square = Image.new(image.mode, (size, size), padding)
    square.paste(image)
    return square


def photometric_distortion(image: Image.Image, strength: float) -> Image.Image:
    """Change brightness, contrast, saturation and hue, each in half of the images.

    Source: PhotoMetricDistortion of mmsegmentation, whose ranges are those of strength 0.5: brightness +-32 of 255,
    contrast and saturation 0.5 to 1.5, hue +-36 degrees. Contrast changes before or after hue, at random.
    """
    # the order of the draws decides which view a seed gives
    late = random.random() < 0.5
    shift = random.uniform(-64, 64) * strength if random.random() < 0.5 else 0.0
    gain = random.uniform(1 - strength, 1 + strength) if random.random() < 0.5 else 1.0
    image = _linear(image, 1.0 if late else gain, shift if late else gain * shift)
    vivid = random.uniform(1 - strength, 1 + strength) if random.random() < 0.5 else 1.0
    turn = random.uniform(-51.2, 51.2) * strength if random.random() < 0.5 else 0.0  # of 256, Pillow's full circle
    if vivid != 1 or turn:
        table = [round(h + turn) % 256 for h in range(256)] + _linear_table(vivid, 0) + _linear_table(1, 0)
        image = image.convert("HSV").point(table).convert("RGB")
    return _linear(image, gain, 0) if late else image


def _linear(image: Image.Image, gain: float, shift: float) -> Image.Image:
    return image if gain == 1 and not shift else image.point(_linear_table(gain, shift) * 3)


def _linear_table(gain: float, shift: float) -> list[int]:
    """Lookup table of gain * x + shift, clipped to 0 and 255."""
    return [min(255, max(0, int(gain * x + shift))) for x in range(256)]
