"""Checkpoint conversion: read published weights into our networks, and write ours for authors, timm and transformers.

Tensor names of the formats are in formats/, each table used in both directions. A checkpoint is data: no code in it is
run, and what becomes of each tensor is reported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from bench.checkpoints.formats import (
    Family,
    ParsedCheckpoint,
    Pool,
    Purpose,
    RawCheckpoint,
    State,
    authors,
    huggingface,
    timm,
)
from bench.checkpoints.formats.safe_open import open_weights
from bench.checkpoints.locate import IMPORTED, LocatedWeights, locate
from bench.checkpoints.weights import save_weights
from bench.config.schema import Model, Recipe
from bench.errors import BenchError, listed_up_to, parse, unknown
from bench.files import read_json, unwritable, write_json
from bench.methods.classification import build_classifier
from bench.methods.masked_images import Recover
from bench.methods.objective import Objective
from bench.methods.segmentation import build_segmenter
from bench.models.backbone import BIAS_TABLE, CONVNET, build
from bench.models.pos_embed import resize_embedding, resize_table
from bench.runs.run import Run

Target = Literal["hf", "timm", "authors"]
TARGETS = ("hf", "timm", "authors")
MAY_LACK = ("head.", "lm_head.", "decoder.", "backbone.mask_token", "backbone.norm.")  # a later stage starts them anew
UNUSED = {  # what a published network may hold beside what it was trained for, and our network for that does not read
    "pretrain": ("head.",),
    "classify": ("backbone.mask_token",),
    "segment": ("backbone.norm.", "backbone.mask_token"),
}
IGNORED = 255  # label of pixels without a loss; any number, since nothing is trained here


class TensorReport(NamedTuple):
    """What became of each tensor, by our name where it has one, else by theirs."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]  # of our network
    unexpected: tuple[str, ...]  # without a place in it
    resized: tuple[str, ...]  # position embeddings and bias tables, to the grid of the config
    left: tuple[str, ...] = ()  # known to be of no use: index buffers, the decoder of MAE


@dataclass(frozen=True, slots=True)
class ConvertedCheckpoint:
    """Published weights as the state of one of our networks."""

    model: Model
    state: State  # under the names of our objectives, in fp32
    purpose: Purpose
    pool: Pool
    family: Family
    preprocessing: dict[str, Any]  # as far as known: mean, std, resolution, crop_ratio, interpolation, whole
    labels: tuple[str, ...]
    report: TensorReport
    source: str
    digest: str  # sha256 of the weights


def read(source: str | Path, *, partial: bool = False, heads: int = 0) -> ConvertedCheckpoint:
    """Read published weights by path, hub id or timm:NAME. heads: number of attention heads, if the file does not say.

    BenchError for tensors without a place in our network, and for a backbone that lacks some or has them in another
    shape; partial: the first two are only reported. A missing head is only reported: a warm start needs none.
    """
    located = locate(str(source))
    weights = open_weights(located)
    family, parsed = _read_own(located, weights) or _read_published(weights, heads)
    state, report = _fit(weights.name, parsed, partial)
    return ConvertedCheckpoint(
        model=parsed.model,
        state=state,
        purpose=parsed.purpose,
        pool=parsed.pool,
        family=family,
        preprocessing=parsed.preprocessing,
        labels=parsed.labels,
        report=report,
        source=str(source),
        digest=located.digest,
    )


def _read_own(located: LocatedWeights, weights: RawCheckpoint) -> tuple[Family, ParsedCheckpoint] | None:
    """A finished run, or what `bench import` wrote, whose tensor names are ours; None for anything else."""
    if located.is_run:
        stage = Run(located.path).stage()
        pool: Pool = stage.recipe.pool if stage.recipe else "token"
        return "bench", ParsedCheckpoint(stage.model, _network_state(weights.state), pool=pool)
    if not (located.path / IMPORTED).is_file():
        return None
    facts = read_json(located.path / IMPORTED)
    parsed = ParsedCheckpoint(
        parse(Model, facts["model"], str(located.path)),
        weights.state,
        pool=facts["pool"],
        preprocessing=facts.get("preprocessing", {}),
        labels=tuple(facts.get("labels", ())),
    )
    return "bench", parsed


def _read_published(weights: RawCheckpoint, heads: int) -> tuple[Family, ParsedCheckpoint]:
    """Parse weights by the first format that recognises them. BenchError when none does."""
    if huggingface.is_transformers_checkpoint(weights):
        return "transformers", huggingface.read(weights)
    if timm.is_timm_checkpoint(weights):
        return "timm", timm.read(weights)
    if authors.has_authors_names(weights):
        return "authors" if authors.is_authors_checkpoint(weights) else "timm", authors.read(weights, heads=heads)
    if any(".layer.0." in name for name in weights.state):
        raise BenchError(f"{weights.name} looks like a model of transformers; put its config.json beside it")
    first = ", ".join([*weights.state][:3])
    raise BenchError(f"{weights.name} is not a Vision Transformer of the authors, timm or transformers: it has {first}")


def _fit(name: str, parsed: ParsedCheckpoint, partial: bool) -> tuple[State, TensorReport]:
    """Compare a parsed checkpoint with our network: the tensors that it takes, resized, and the report."""
    shapes = _network_shapes(parsed)
    surplus = [key for key in parsed.state if key not in shapes]
    unused = tuple(key for key in surplus if key.startswith(UNUSED[parsed.purpose]))
    unexpected = (*parsed.unknown, *(key for key in surplus if key not in unused))
    missing = tuple(key for key in shapes if key not in parsed.state)
    if not partial:
        _refuse(name, "has, unexpectedly,", unexpected)
        _refuse(name, "lacks", [key for key in missing if not key.startswith(MAY_LACK)])
    tensors = {key: value for key, value in parsed.state.items() if key in shapes}
    state = {key: _resize_positions(key, value, parsed.model) for key, value in tensors.items()}
    if other := [key for key, value in state.items() if value.shape != shapes[key]]:
        mismatches = (f"{key} {tuple(state[key].shape)} instead of {tuple(shapes[key])}" for key in other)
        raise BenchError(f"{name} has tensors of other shapes than its network: {listed_up_to(sorted(mismatches), 5)}")
    resized = tuple(key for key, value in state.items() if value.shape != tensors[key].shape)
    matched = tuple(key for key in state if key not in resized)
    return state, TensorReport(matched, missing, unexpected, resized, (*parsed.left, *unused))


def _network_shapes(parsed: ParsedCheckpoint) -> dict[str, torch.Size]:
    """Names and shapes of our network's tensors."""
    with torch.device("meta"):  # neither memory nor random draws
        network = _build_network(parsed.model, parsed.purpose, parsed.pool, parsed.state)
    return {key: value.shape for key, value in network.trainable_state().items()}


def _build_network(model: Model, purpose: Purpose, pool: Pool, state: State) -> Objective:
    """Our network for a checkpoint, with starting weights."""
    if purpose == "segment":
        return build_segmenter(model, Recipe(), ignore_label=IGNORED)
    if purpose == "classify":
        representation = any(name.startswith("head.representation.") for name in state)
        return build_classifier(model, Recipe(pool=pool), representation=representation)
    outputs = len(state["lm_head.weight"]) if "lm_head.weight" in state else 1
    return Recover(build(model, mask_token=True), outputs)


def _resize_positions(key: str, value: Tensor, model: Model) -> Tensor:
    """Resize the positions of a square grid to the network's; others stay, for the check of shapes to refuse."""
    prefix = 2 if model.distilled else 1
    if key == "backbone.pos_embed" and math.isqrt(value.shape[1] - prefix) ** 2 == value.shape[1] - prefix:
        return resize_embedding(value, model.grid, prefix_tokens=prefix)
    return resize_table(value, model.grid) if key.endswith(BIAS_TABLE) and authors.is_square(value) else value


def _refuse(name: str, what: str, keys: Iterable[str]) -> None:
    if names := sorted(keys):
        raise BenchError(f"{name} {what} {listed_up_to(names, 5)}; --partial reads the rest")


def build_objective(checkpoint: ConvertedCheckpoint) -> Objective:
    """Build our network with the checkpoint's weights, in evaluation mode.

    It has `predict`, or `predictions` after masked image modelling. BenchError when parts are missing, since the
    outputs of their starting weights mean nothing.
    """
    if missing := sorted(checkpoint.report.missing):
        raise BenchError(
            f"{checkpoint.source} lacks {listed_up_to(missing, 5)}, so it cannot predict; "
            f"a stage can start from it: --set finetune.start_from={checkpoint.source}"
        )
    network = _build_network(checkpoint.model, checkpoint.purpose, checkpoint.pool, checkpoint.state)
    network.load_trainable_state(checkpoint.state)
    return network.eval()


def write(
    trained: Objective | Mapping[str, Tensor],
    model: Model,
    pool: Pool,
    to: Target,
    folder: str | Path,
    *,
    labels: tuple[str, ...] = (),
    preprocessing: Mapping[str, Any] | None = None,
    method: str = "",
) -> list[Path]:
    """Write a trained network, or its state dict, in another library's format; returns the files.

    to: hf writes config.json and model.safetensors for transformers, timm the same for timm, authors checkpoint.pth.
    method: that trained it; where transformers has several classes for one network, it decides which.
    BenchError for a network that the target does not have.
    """
    if to not in TARGETS:
        raise unknown("target", to, TARGETS)
    folder = Path(folder)
    state = _network_state(trained.trainable_state() if isinstance(trained, Objective) else dict(trained))
    if pool == "mean":  # with which the representation layer is not used
        state = {name: value for name, value in state.items() if not name.startswith("head.representation.")}
    _check_target(state, model, to)
    if to == "authors":
        return [_save_pickle(folder / "checkpoint.pth", authors.write(state, model))]
    if to == "timm":
        weights, config = timm.write(state, model, pool, labels=labels, preprocessing=dict(preprocessing or {}))
    else:
        weights, config = huggingface.write(state, model, pool, method=method, labels=labels)
    save_weights(folder / "model.safetensors", weights)
    write_json(folder / "config.json", config)
    return [folder / "model.safetensors", folder / "config.json"]


def _network_state(state: State) -> State:
    """The tensors of the network itself, without an EMA teacher or counters."""
    return {name: value for name, value in state.items() if re.match(r"(backbone|head|lm_head|decoder)\.", name)}


def _check_target(state: State, model: Model, to: Target) -> None:
    if model.trunk.startswith(CONVNET) and to != "timm":
        raise BenchError(f"{model.trunk} is a network of timm's; --to timm writes it")
    if any(name.startswith("head.linear.") for name in state):
        raise BenchError("no format has a linear probe on every block; export the run whose backbone was probed")


def _save_pickle(path: Path, content: dict[str, Any]) -> Path:
    """Write a .pth file, whole or not at all; plain data and tensors only, so that weights_only=True reads it."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(content, file)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from None
    return path
