"""Read weight files without running code from them: safetensors, and pickles of plain data only."""

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
_SCALAR = np.float64(0).__reduce__()[0]  # the function by which NumPy unpickles a number
PLAIN: list[Any] = [  # what a pickle may name, beside what torch allows
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in _NUMBERS),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # before NumPy 2, and since
]
CONVERT = """python -c 'import torch, safetensors.torch as s
file = torch.load("{old}", map_location="cpu", weights_only=False)  # runs code from the file
state = next((file[key] for key in ("model", "module", "state_dict") if key in file), file)
s.save_file({{k: v.contiguous().clone() for k, v in state.items() if hasattr(v, "shape")}}, "{new}")'"""


def open_weights(located: LocatedWeights) -> RawCheckpoint:
    """Read the tensors of located weights, in fp32, and the JSON beside them. BenchError when that is not safe."""
    values: dict[str, Any] = {}
    for path in located.weights:
        values |= load_safetensors(path) if path.suffix == ".safetensors" else load_pickle(path)
    container = next((key for key in CONTAINERS if isinstance(values.get(key), dict)), "")
    state = _tensors(values[container] if container else values)
    if not state:
        raise BenchError(f"{located.id} holds no tensors, but {', '.join(map(str, [*values][:5])) or 'nothing'}")
    config, preprocessor = (_read_json_beside(located, name) for name in CONFIGS)
    facts = {name: value for name, value in values.items() if name != container}
    return RawCheckpoint(located.id, state, config, preprocessor, container, facts)


def load_pickle(path: Path) -> dict[str, Any]:
    """Read a .pth or .bin file: tensors and plain values, by name.

    Beside those, only data types are allowed: the argparse.Namespace in which the authors save their options, and
    NumPy's numbers, which BEiT's and data2vec's schedules leave in the state of the optimiser.
    BenchError for a file that would have to run code, with a command to convert it.
    """
    try:
        with torch.serialization.safe_globals(PLAIN):
            values = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, AttributeError) as error:
        raise _pickle_error(path, error) from None
    if not isinstance(values, dict):
        raise BenchError(f"{path} holds a {type(values).__name__}, not weights by name")
    return {str(key): value for key, value in values.items()}


def load_safetensors(path: Path) -> State:
    """Read the tensors of a safetensors file. BenchError when it is damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BenchError(f"{path} is damaged: {error}") from None


def _pickle_error(path: Path, error: Exception) -> BenchError:
    """The error for a file that torch would not read with weights_only, from torch's message."""
    name = re.search(r"(?:GLOBAL|Unsupported class|type) ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and name:
        convert = CONVERT.format(old=path, new=path.with_suffix(".safetensors").name)
        return BenchError(
            f"{path} is not opened: it is a pickle that would run {name[1]}, and a pickle may run any code. If you "
            f"trust it, convert it in a sandbox, then name the new file:\n{convert}"
        )
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    # torch's own message advises to load with weights_only=False, which would run the file.
    why = "it holds neither tensors nor plain data" if "weights_only" in first else first
    return BenchError(f"{path} is damaged or not a file of weights: {why}")


def _tensors(values: dict[str, Any]) -> State:
    """The tensors among values, floating ones in fp32, without the prefix that a data-parallel wrapper leaves."""
    state = {str(name): value for name, value in values.items() if isinstance(value, Tensor)}
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def _read_json_beside(located: LocatedWeights, name: str) -> dict[str, Any]:
    """Read a JSON file beside the weights; {} when there is none, or when the weights are a file that needs none."""
    paths: Iterable[Path] = located.configs
    if located.path.is_file() and located.path.name in SINGLE:  # a file of a Hugging Face folder, named by itself
        paths = (located.path.parent / name,)
    path = next((path for path in paths if path.name == name and path.is_file()), None)
    return dict(read_json(path)) if path else {}
