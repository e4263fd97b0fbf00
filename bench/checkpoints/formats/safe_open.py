"""Weights out of a file, without running anything that is in it: safetensors, and pickles of plain data alone."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bench.checkpoints.formats import RawCheckpoint, State
from bench.checkpoints.locate import CONFIGS, SINGLE, LocatedWeights
from bench.errors import BenchError
from bench.files import read_json

CONTAINERS = ("model", "module", "state_dict")  # DeiT, BEiT, MAE and data2vec; DeepSpeed; mmsegmentation
_NUMBERS = ("bool", "int32", "int64", "float16", "float32", "float64")
_SCALAR = np.float64(0).__reduce__()[0]  # what makes a number of its bytes
PLAIN: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in _NUMBERS),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # before NumPy 2, and since
]
CONVERT = """python -c 'import torch, safetensors.torch as s
held = torch.load("{old}", map_location="cpu", weights_only=False)  # runs what the file says
held = next((held[key] for key in ("model", "module", "state_dict") if key in held), held)
s.save_file({{k: v.contiguous().clone() for k, v in held.items() if hasattr(v, "shape")}}, "{new}")'"""


def opened(found: LocatedWeights) -> RawCheckpoint:
    """The tensors of located weights in fp32, and what lies beside them. BenchError when they cannot be read safely."""
    held: dict[str, Any] = {}
    for path in found.weights:
        held |= safely(path) if path.suffix == ".safetensors" else unpickled(path)
    container = next((key for key in CONTAINERS if isinstance(held.get(key), dict)), "")
    state = _tensors(held[container] if container else held)
    if not state:
        raise BenchError(f"{found.id} holds no tensors, but {', '.join(map(str, [*held][:5])) or 'nothing'}")
    config, preprocessor = (_beside(found, name) for name in CONFIGS)
    return RawCheckpoint(
        found.id, state, config, preprocessor, container, {k: v for k, v in held.items() if k != container}
    )


def unpickled(path: Path) -> dict[str, Any]:
    """What a .pth or .bin file holds: tensors and plain values.

    Let through is what holds data and runs nothing: the argparse.Namespace in which the authors save their options,
    and NumPy's numbers, which BEiT's and data2vec's schedules leave in the state of the optimiser.
    BenchError for a file that would have to run code, with the way to convert it where one trusts it.
    """
    try:
        with torch.serialization.safe_globals(PLAIN):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, AttributeError) as error:
        raise _refused(path, error) from None
    if not isinstance(held, dict):
        raise BenchError(f"{path} holds a {type(held).__name__}, not weights by name")
    return {str(key): value for key, value in held.items()}


def safely(path: Path) -> State:
    """The tensors of a safetensors file. BenchError when it is damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BenchError(f"{path} is damaged: {error}") from None


def _refused(path: Path, error: Exception) -> BenchError:
    asked = re.search(r"(?:GLOBAL|Unsupported class|type) ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and asked:
        convert = CONVERT.format(old=path, new=path.with_suffix(".safetensors").name)
        return BenchError(
            f"{path} is not opened: it is a pickle that would run {asked[1]}, and a pickle may run anything. If you "
            f"trust it, convert it where nothing of value is in reach, then give the new file:\n{convert}"
        )
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    why = "it holds neither tensors nor plain data" if "weights_only" in first else first  # torch advises to run it
    return BenchError(f"{path} is damaged or no file of weights: {why}")


def _tensors(held: dict[str, Any]) -> State:
    """Tensors by name, floating ones in fp32, without the prefix that a data-parallel wrapper leaves."""
    state = {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def _beside(found: LocatedWeights, name: str) -> dict[str, Any]:
    """A JSON file beside the weights; {} when there is none, or when the weights are a file that needs none."""
    places: Iterable[Path] = found.configs
    if found.path.is_file() and found.path.name in SINGLE:
        places = (found.path.parent / name,)
    path = next((place for place in places if place.name == name and place.is_file()), None)
    return dict(read_json(path)) if path else {}
