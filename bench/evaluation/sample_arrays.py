"""Sample images of a stage with what its objective shows of them, as arrays for the report: pictures.npz."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.config.stage import Stage
from bench.files import write_atomic
from bench.launch.distributed import autocast
from bench.methods.objective import Objective
from bench.pipeline.dataloader import Images, View, load_batches, move_and_normalise
from bench.pipeline.sampler import Draw

SAMPLES = 32  # images, evenly spaced over the split


@torch.inference_mode()
def write_pictures(path: Path, objective: Objective, stage: Stage, source: Images, view: View, precision: str) -> None:
    """Store what an objective shows of some images: arrays by name, the first axis being the images.

    "index" tells which images they are. They go through `view` and are then cropped to the network's size.
    """
    indices = np.linspace(0, len(source) - 1, min(SAMPLES, len(source))).astype(int).tolist()
    draws = [Draw(index, 0, 0, position) for position, index in enumerate(indices)]
    device = next(objective.parameters()).device
    batch = next(
        load_batches(source, lambda sample: _square(view(sample), stage.model.image_size), [draws], seed=stage.seed)
    )
    objective.eval()
    with autocast(device, precision):
        arrays = objective.pictures(move_and_normalise(batch, device, stage.protocol))
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, index=np.array(indices), **arrays)
    write_atomic(path, stream.getvalue())


def _square(sample: Mapping[str, Any], side: int) -> dict[str, Any]:
    """A view with its image and label map, which may be larger than the network's input, center-cropped."""
    image, labels = sample["image"], sample.get("map")
    if labels is None:
        return dict(sample)
    fitted = F.interpolate(labels[None, None].float(), image.shape[-2:], mode="nearest-exact")[0, 0].to(labels.dtype)
    return {"image": _middle(image, side), "map": _middle(fitted, side)}


def _middle(picture: Tensor, side: int) -> Tensor:
    """(..., h, w) -> (..., side, side): cut, or with zeros around it where it is smaller."""
    missing = [max(0, side - length) for length in (picture.shape[-1], picture.shape[-2])]
    picture = F.pad(picture, [part for gap in missing for part in (gap // 2, gap - gap // 2)])
    top, left = ((length - side) // 2 for length in picture.shape[-2:])
    return picture[..., top : top + side, left : left + side]
