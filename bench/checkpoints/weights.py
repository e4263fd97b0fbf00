"""Weights as safetensors files: written whole or not at all, damage noticed when they are read."""

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
    """A checkpoint that is not what was written."""


def save_weights(path: Path, weights: Weights) -> None:
    """Weights as safetensors, written like every other file: whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_weights(temporary, weights)
        temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from None


def load_weights(path: Path) -> Weights:
    """Weights of a finished stage, on the CPU; BenchError when the file is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise BenchError(f"{path}: no such file; run the stage it belongs to again") from None
    except (OSError, SafetensorError) as error:
        raise BenchError(f"{path} is damaged ({error}); delete its run folder to compute it again") from None


def _write_weights(path: Path, weights: Weights) -> None:
    """On the CPU and each with memory of its own, as the format wants them."""
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}, path)
    _sync(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _unwritable(path: Path, error: BaseException) -> BenchError:
    """The error of the file system; torch and safetensors raise their own on top of it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return unwritable(path, cause or OSError(str(error)))
