"""The arrays that a stage stored for figures (pictures.npz), under common names and in common ranges.

Letters: K images, g patches along a side, H W pixels.
    images, reconstruction (K,3,H,W) uint8      hidden (K,g,g) bool      words (K,g,g)      attention (K,g,g)
    labels, predictions (K,)                    maps, predicted_maps (K,H,W)
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping

import numpy as np

from bench.config.schema import Protocol
from bench.errors import BenchError
from bench.reporting.analysis.outcomes import StageRun

Arrays = dict[str, np.ndarray]
PLURAL = {"image": "images", "label": "labels", "map": "maps"}
INTEGERS = ("labels", "predictions", "maps", "predicted_maps", "words")  # ids of classes and tokens


def read_arrays(stage_run: StageRun) -> Arrays:
    """The arrays that a stage stored in pictures.npz; {} when it stored none. BenchError when the file is damaged."""
    path = stage_run.run.path("pictures.npz")
    if stage_run.state != "done" or not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            return normalise({name: stored[name] for name in sorted(stored.files)}, stage_run.stage.protocol)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BenchError(f"{stage_run.stage.folder}/pictures.npz cannot be read: {error}") from None


def normalise(stored: Mapping[str, np.ndarray], protocol: Protocol) -> Arrays:
    """The arrays under common names and types; images that were normalised for the network become pixels again."""
    named = {_name(name, array): array for name, array in stored.items()}
    arrays = {name: array.astype(np.int64) if name in INTEGERS else array for name, array in named.items()}
    for name in {"images", "reconstruction"} & arrays.keys():
        arrays[name] = _pixels(arrays[name], protocol)
    if "hidden" in arrays:
        arrays["hidden"] = arrays["hidden"].astype(bool)
    return arrays


def _name(name: str, array: np.ndarray) -> str:
    """The name for figures: objectives name the arrays of a batch in the singular, and classes and maps alike."""
    if name == "prediction":
        return "predictions" if array.ndim == 1 else "predicted_maps"  # classes (K,) or maps (K,H,W)
    return PLURAL.get(name, name)


def _pixels(images: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Images (K,3,H,W) as uint8: as they are, from [0,1], or from values normalised by the protocol."""
    if images.dtype == np.uint8:
        return images
    if images.min() < 0 or images.max() > 1:
        mean, deviation = (np.array(values)[None, :, None, None] for values in (protocol.mean, protocol.std))
        images = images * deviation + mean
    return (255 * images.clip(0, 1)).round().astype(np.uint8)
