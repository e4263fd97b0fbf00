"""Save and load weights as safetensors files, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.errors import BenchError
from bench.files import sync_folder, unwritable

Weights = dict[str, Tensor]


class Damaged(Exception):
    """A checkpoint that differs from what was written."""


def save_weights(path: Path, weights: Weights) -> None:
    """Write weights as a safetensors file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_weights(temporary, weights)
        temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise unwritable_weights(path, error) from None


def load_weights(path: Path) -> Weights:
    """Load the weights of a finished stage onto the CPU; BenchError when the file is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise BenchError(f"{path}: no such file; run the stage it belongs to again") from None
    except (OSError, SafetensorError) as error:
        raise BenchError(f"{path} is damaged ({error}); delete its run folder to compute it again") from None


def write_weights(path: Path, weights: Weights) -> None:
    """Write weights as a safetensors file in place, and sync it to disk."""
    # On the CPU and each with memory of its own: safetensors refuses tensors that share memory.
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}, path)
    sync_file(path)


def sync_file(path: Path) -> None:
    """Wait until a file is on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def unwritable_weights(path: Path, error: BaseException) -> BenchError:
    """The BenchError for weights that cannot be written, with the file system's reason."""
    # torch and safetensors raise errors of their own, with the OSError as their context.
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return unwritable(path, cause or OSError(str(error)))
