"""`bench import`: read a published checkpoint, report what it is, and write it in our layout.

final/model.safetensors    weights under our names
imported.json              the network, where the weights are from, and their digest
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.checkpoints import conversion
from bench.checkpoints.conversion import ConvertedCheckpoint
from bench.checkpoints.locate import IMPORTED, OURS, LocatedWeights, digest_of, locate
from bench.checkpoints.weights import save_weights
from bench.errors import BenchError
from bench.files import write_json
from bench.version import __version__

FORMAT = 1  # of imported.json
BLOCK = re.compile(r"\.(\d+)\.")
Row = dict[str, str]


def locate_and_read(
    source: str, *, partial: bool = False, heads: int = 0, output: Path = Path("results")
) -> tuple[LocatedWeights, ConvertedCheckpoint]:
    """Find and read published weights. output: where runs are looked for by the beginning of their name.

    heads: of attention, where a bare file does not tell.
    """
    located = locate(source, output)
    return located, replace(conversion.read(located.path, partial=partial, heads=heads), source=source)


def save(located: LocatedWeights, checkpoint: ConvertedCheckpoint, folder: Path) -> Path:
    """Write a checkpoint in our layout; start_from and `bench evaluate` take the folder. Returns the folder.

    BenchError for a folder that holds anything but an earlier import.
    """
    if folder.exists() and not (folder.is_dir() and ({p.name for p in folder.iterdir()} <= {IMPORTED, "final"})):
        raise BenchError(f"{folder} is not empty and no import wrote it; name a new or empty folder")
    save_weights(folder / OURS, checkpoint.state)
    facts = {
        "format": FORMAT,
        "bench": __version__,
        "revision": located.revision,
        "sha256": digest_of([folder / OURS]),
        **checkpoint_facts(checkpoint),
    }
    write_json(folder / IMPORTED, facts)
    return folder


def checkpoint_facts(checkpoint: ConvertedCheckpoint) -> dict[str, Any]:
    """What a checkpoint is, as JSON values."""
    return {
        "source": checkpoint.source,
        "digest": checkpoint.digest,
        "family": checkpoint.family,
        "purpose": checkpoint.purpose,
        "pool": checkpoint.pool,
        "model": checkpoint.model.model_dump(mode="json"),
        "parameters": sum(value.numel() for value in checkpoint.state.values()),
        "preprocessing": dict(checkpoint.preprocessing),
        "labels": list(checkpoint.labels),
        "report": {name: list(keys) for name, keys in checkpoint.report._asdict().items()},
    }


def facts_rows(located: LocatedWeights, checkpoint: ConvertedCheckpoint) -> list[Row]:
    """What a checkpoint is, as rows of a table."""
    model = checkpoint.model
    network = f"{model.trunk}, width {model.width}, depth {model.depth}, {model.heads} heads, patch {model.patch_size}"
    head = f", decoder {model.decoder}" if model.decoder else ""
    size = "" if "x" in model.size or not model.size else f" ({model.size})"
    facts = {
        "from": f"{located.path}" + (f", revision {located.revision[:12]}" if located.revision else ""),
        "sha256": checkpoint.digest,
        "family": checkpoint.family,
        "made for": checkpoint.purpose,
        "network": f"{network}{size}{head}",
        "pixels": f"{model.image_size} x {model.image_size}",
        "positions": model.position + (", distillation token" if model.distilled else ""),
        "LayerScale": "yes" if model.layer_scale else "no",
        "pool": checkpoint.pool,
        "parameters": f"{sum(value.numel() for value in checkpoint.state.values()):,}",
        "classes": f"{model.classes:,}" + (f": {', '.join(checkpoint.labels[:3])}, ..." if checkpoint.labels else ""),
        "preprocessing": ", ".join(f"{name} {value}" for name, value in checkpoint.preprocessing.items()) or "not said",
    }
    return [{"fact": name, "value": value} for name, value in facts.items()]


def report_rows(checkpoint: ConvertedCheckpoint) -> list[Row]:
    """What became of each tensor; those that differ only in the number of their block share a row."""
    return [
        {"tensors": str(len(numbers)), "became": state, "name": _with_range(name, numbers)}
        for state, keys in checkpoint.report._asdict().items()
        for name, numbers in _group_blocks(keys).items()
    ]


def _group_blocks(keys: Iterable[str]) -> dict[str, list[int]]:
    """Names with {} for the first number in them -> the numbers; -1 where there is none."""
    groups: dict[str, list[int]] = {}
    for key in keys:
        match = BLOCK.search(key)
        name = BLOCK.sub(".{}.", key, count=1) if match else key
        groups.setdefault(name, []).append(int(match[1]) if match else -1)
    return groups


def _with_range(name: str, numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return name.replace("{}", str(low) if low == high else f"{low}-{high}")
