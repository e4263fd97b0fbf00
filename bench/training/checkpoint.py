"""Checkpoints: all that a stage needs to resume as if it had never stopped, written completely or not at all.

    checkpoints/step-00000500/
        model.safetensors      trained weights, and what else an objective keeps (an EMA teacher), not its frozen parts
        ema.safetensors        EMA of the weights, where the recipe asks for one
        best.safetensors       weights with the best score so far, where the recipe selects by score
        optimizer.pt           state of the optimiser, loadable with weights_only
        facts.json             step, clock, gradient scaler, best score so far
        manifest.json          size and hash of each of these files

The state of random generators is not among them: every draw is seeded by the step it belongs to (bench.seeding).
"""

from __future__ import annotations

import logging
import pickle
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from bench.checkpoints.weights import Damaged, Weights, sync_file, unwritable_weights, write_weights
from bench.errors import BenchError
from bench.files import fingerprint, read_json, sync_folder, write_json

log = logging.getLogger(__name__)

NUMBER_KEPT = 2  # one to go back to if the newest is damaged


class Checkpoint(NamedTuple):
    """What is saved. `facts` is anything JSON can hold, `weights` one file for each name."""

    step: int
    weights: dict[str, Weights]
    optimizer: dict[str, Any]
    facts: dict[str, Any]


def save(root: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint below `root`, then remove all but the last two. BenchError when it cannot be written.

    Files are synced under a temporary name that is renamed last: after a crash it is there in full or not at all.
    """
    folder = _folder(root, checkpoint.step)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _write(temporary, checkpoint)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        sync_folder(root)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise unwritable_weights(folder, error) from None
    for old in _folders(root)[NUMBER_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def newest(root: Path) -> Checkpoint | None:
    """The last complete checkpoint below `root`; None when none was ever written.

    A damaged one is logged and skipped. BenchError when all are damaged.
    """
    folders = _folders(root)
    for folder in folders:
        try:
            return _read(folder)
        except Damaged as error:
            log.warning("checkpoint %s is damaged (%s) and is not used; going back to the one before", folder, error)
    if folders:
        raise BenchError(f"every checkpoint in {root} is damaged; delete that folder to train the stage from its start")
    return None


def clear(root: Path) -> None:
    """Remove all checkpoints: the stage is finished and has written its final weights."""
    shutil.rmtree(root, ignore_errors=True)


def _folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def _folders(root: Path) -> list[Path]:
    """The checkpoints below `root`, newest first."""
    return sorted(root.glob("step-*"), reverse=True)


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    for name, weights in checkpoint.weights.items():
        write_weights(folder / f"{name}.safetensors", weights)
    with (folder / "optimizer.pt").open("wb") as file:  # given a path, torch does not say why it cannot write
        torch.save(checkpoint.optimizer, file)
    sync_file(folder / "optimizer.pt")
    write_json(folder / "facts.json", {"step": checkpoint.step, **checkpoint.facts})
    files = sorted(path for path in folder.iterdir())
    manifest = {path.name: {"size": path.stat().st_size, "blake2b": fingerprint(path)} for path in files}
    write_json(folder / "manifest.json", manifest)


def _read(folder: Path) -> Checkpoint:
    try:
        _verify(folder)
        weights = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
        optimizer = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        facts = read_json(folder / "facts.json")
    except (OSError, BenchError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise Damaged(str(error)) from None
    return Checkpoint(facts.pop("step"), weights, optimizer, facts)


def _verify(folder: Path) -> None:
    for name, fact in read_json(folder / "manifest.json").items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{name} is missing")
        if path.stat().st_size != fact["size"]:
            raise Damaged(f"{name} has {path.stat().st_size} bytes, not {fact['size']}")
        if fingerprint(path) != fact["blake2b"]:
            raise Damaged(f"{name} has changed")
