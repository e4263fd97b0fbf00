"""Views: the transforms from an image to the tensors of a sample, for training and evaluation; normalisation.

A view runs on one sample in a worker of the data loader and draws only from the global generators of Python, NumPy and
torch, which the loader has seeded for this image. Its images are uint8 (C, H, W), a quarter of the bytes of float32;
`normalise` converts a whole batch on the device.

Letters: B images, C channels (3), H, W pixels, K classes.

Departs from the reference: nothing. BEiT's colour jitter is computed on the crop alone and gives the same pixels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import posterize, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import ColorJitter
from torchvision.transforms import functional as vision

from bench.config.schema import Model, Protocol, Recipe
from bench.data.source import Sample
from bench.errors import BenchError
from bench.pipeline.color_jitter import Box, draw_jitter, jitter_and_crop

View = Callable[[Sample], dict[str, Any]]
Triple = tuple[float, float, float]

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
RAND_AUGMENT = re.compile(r"rand(-(m|n|mmax|inc)\d+|-(mstd|p)\d+(\.\d+)?|-tweights)*")  # timm skips the rest


def train_view(recipe: Recipe, model: Model, protocol: Protocol) -> View:
    """The view for supervised training: random crop, flip, RandAugment or colour jitter, random erasing.

    {"image": uint8 (C, H, W), "label": int}; with random erasing the image is float32 and already normalised,
    because the erased box is filled with noise of unit variance. As in timm's `create_transform`, which
    DeiT and BEiT use, `color_jitter` has no effect while RandAugment is on.
    Raises BenchError for a `rand_augment` that timm cannot read.
    """
    return _TrainView(
        crop=RandomCrop.of(recipe, model.image_size),
        flip=recipe.flip,
        augment=_augment(recipe, protocol),
        erase=_erase(recipe),
        mean=protocol.mean,
        std=protocol.std,
    )


def crop_flip_jitter(recipe: Recipe, model: Model, protocol: Protocol) -> View:
    """The view for pretraining: colour jitter, flip, random crop. {"image": uint8 (C, H, W), "label": int}.

    Source: DataAugmentationForBEiT (B: datasets.py); data2vec uses the same (V: datasets.py).
    """
    return _PretrainView(RandomCrop.of(recipe, model.image_size), recipe.flip, recipe.color_jitter)


def two_views(recipe: Recipe, model: Model, protocol: Protocol, *, token_size: int | None = None) -> View:
    """The view for BEiT: a crop for the student, and the same crop, smaller, for the tokenizer.

    Adds "token_image": uint8 (C, token_size, token_size), resampled by Lanczos from the same jittered and flipped box.
    token_size: half the image size by default.
    Source: RandomResizedCropAndInterpolationWithTwoPic (B: transforms.py).
    """
    return _PretrainView(
        RandomCrop.of(recipe, model.image_size), recipe.flip, recipe.color_jitter, token_size or model.image_size // 2
    )


def eval_view(protocol: Protocol) -> View:
    """The view for evaluation: short side to floor(resolution / crop_ratio), antialiased by Pillow; centre crop.

    If the protocol says `whole`, both sides become that long, as in transformers' image processors.
    """
    return _EvalView(
        side=math.floor(protocol.resolution / protocol.crop_ratio + 1e-6),  # 384 / (384 / 450) is 449.99999999999994
        whole=protocol.whole,
        size=protocol.resolution,
        resampling=RESAMPLING[protocol.interpolation],
    )


def normalise(images: Tensor, mean: Triple, std: Triple) -> Tensor:
    """uint8 images (B, C, H, W) as normalised float32; float images are normalised already and stay as they are."""
    if images.is_floating_point():
        return images
    mean_tensor, std_tensor = _statistics(mean, std, images.device)
    return to_unit(images).sub_(mean_tensor).div_(std_tensor)


def to_unit(images: Tensor) -> Tensor:
    """uint8 pixels as float32 from 0 to 1, as tokenizers take them."""
    return images.to(torch.float32).div_(255)


@dataclass(frozen=True)
class RandomCrop:
    """Random resized crop as in timm: a box of random area and aspect, resized to a square."""

    size: int
    scale: tuple[float, float]  # share of the image's area
    ratio: tuple[float, float]  # width / height
    resampling: Image.Resampling

    @classmethod
    def of(cls, recipe: Recipe, size: int) -> RandomCrop:
        """The crop of a recipe, to `size` pixels."""
        for name, (low, high) in (("crop_scale", recipe.crop_scale), ("crop_ratio", recipe.crop_ratio)):
            if low > high:
                raise BenchError(f"{name} = [{low:g}, {high:g}]: the first number must not exceed the second")
        return cls(size, recipe.crop_scale, recipe.crop_ratio, RESAMPLING[recipe.interpolation])

    def box(self, image: Image.Image) -> Box:
        """Draw a box; the whole image if it has too few pixels to be cropped."""
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, self.scale, self.ratio)
        if not height or not width:  # in a tiny image a side of timm's box may round to 0
            return 0, 0, image.width, image.height
        return left, top, left + width, top + height

    def resize(self, image: Image.Image) -> Image.Image:
        """The image at the size of the view."""
        return image.resize((self.size, self.size), self.resampling)


@dataclass(frozen=True)
class _TrainView:
    crop: RandomCrop
    flip: float
    augment: Callable[[Image.Image], Image.Image] | None
    erase: RandomErasing | None
    mean: Triple
    std: Triple

    def __call__(self, sample: Sample) -> dict[str, Any]:
        image = self.crop.resize(sample["image"].crop(self.crop.box(sample["image"])))
        if coin(self.flip):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.augment:
            image = self.augment(image)
        pixels = as_tensor(image)
        if self.erase:
            pixels = self.erase(normalise(pixels, self.mean, self.std))
        return {"image": pixels, "label": sample["label"]}


@dataclass(frozen=True)
class _PretrainView:
    crop: RandomCrop
    flip: float
    jitter: float
    token_size: int = 0  # 0: no second view

    def __call__(self, sample: Sample) -> dict[str, Any]:
        image: Image.Image = sample["image"]
        jitter = draw_jitter(self.jitter)  # drawn in the authors' order: jitter, flip, box
        flipped = coin(self.flip)
        left, top, right, bottom = self.crop.box(image)
        if flipped:  # to crop the mirrored box and flip the crop gives the same as to flip first, but is cheaper
            left, right = image.width - right, image.width - left
        crop = jitter_and_crop(image, (left, top, right, bottom), jitter)
        if flipped:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        views = {"image": as_tensor(self.crop.resize(crop)), "label": sample["label"]}
        if self.token_size:
            small = crop.resize((self.token_size, self.token_size), Image.Resampling.LANCZOS)
            views["token_image"] = as_tensor(small)
        return views


@dataclass(frozen=True)
class _EvalView:
    side: int
    whole: bool
    size: int
    resampling: Image.Resampling

    def __call__(self, sample: Sample) -> dict[str, Any]:
        side = [self.side] * 2 if self.whole else self.side
        image = vision.resize(sample["image"], side, vision.InterpolationMode(self.resampling.name.lower()))
        return {"image": as_tensor(vision.center_crop(image, self.size)), "label": sample["label"]}


def coin(probability: float) -> bool:
    """True with this probability; a probability of 0 draws nothing."""
    return probability > 0 and torch.rand(1).item() < probability


def as_tensor(image: Image.Image) -> Tensor:
    """An RGB image as uint8 (C, H, W)."""
    # np.array copies: Pillow's buffer is read-only, and torch's tensors are not
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _augment(recipe: Recipe, protocol: Protocol) -> Callable[[Image.Image], Image.Image] | None:
    """RandAugment with the settings of timm's `create_transform`; or else colour jitter; or None."""
    if not recipe.rand_augment:
        return ColorJitter(*[recipe.color_jitter] * 3) if recipe.color_jitter else None
    if not RAND_AUGMENT.fullmatch(recipe.rand_augment):
        raise BenchError(
            f"rand_augment = {recipe.rand_augment!r} is not a setting of timm's RandAugment; "
            "write it like 'rand-m9-mstd0.5-inc1', or '' for none"
        )
    settings = {
        "img_mean": tuple(
            min(255, round(255 * value)) for value in protocol.mean
        ),  # fills what a shift or rotation leaves empty
        "interpolation": RESAMPLING[recipe.interpolation],
    }
    augment = rand_augment_transform(recipe.rand_augment, settings)
    for change in augment.ops:
        if change.name.startswith("Posterize"):
            change.aug_fn = _posterize
    return augment


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm's posterize, with black for 0 bits, as Pillow had it when DeiT was trained.

    Magnitude 10, which m9-mstd0.5 reaches in one of 700 images, asks for 0 bits; Pillow 13 raises an error there.
    """
    return posterize(image, bits) if bits else image.point([0] * 256 * len(image.getbands()))


def _erase(recipe: Recipe) -> RandomErasing | None:
    """One box of noise, as in DeiT and BEiT: mode pixel, count 1 (D: main.py)."""
    if not recipe.random_erasing:
        return None
    return RandomErasing(recipe.random_erasing, mode="pixel", max_count=1, device="cpu")


@cache
def _statistics(mean: Triple, std: Triple, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation as (C, 1, 1), copied to a device only once."""
    return tuple(torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))  # type: ignore
