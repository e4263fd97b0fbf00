"""Checkpoints in and out: published weights in our words, and ours as authors, timm and transformers read them.

What they are called there is in families/, each table read in both directions. A checkpoint is data: nothing in it is
run, and all that becomes of its tensors is reported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
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
from bench.checkpoints.formats.safe_open import opened
from bench.checkpoints.locate import IMPORTED, LocatedWeights, locate
from bench.checkpoints.weights import save_weights
from bench.config.schema import Model, Recipe
from bench.errors import BenchError, listed_up_to, parse, unknown
from bench.files import read_json, unwritable, write_json
from bench.methods.classification import classify
from bench.methods.masked_images import Recover
from bench.methods.objective import Objective
from bench.methods.segmentation import segment
from bench.models.backbone import CONVNET, TABLE, build
from bench.models.pos_embed import resize_embedding, resize_table
from bench.runs.run import Run

Target = Literal["hf", "timm", "authors"]
TARGETS = ("hf", "timm", "authors")
MAY_LACK = ("head.", "lm_head.", "decoder.", "backbone.mask_token", "backbone.norm.")  # begin anew in another stage
SPARE = {  # what a published network may hold beside what it was trained for, and what that does not read
    "pretrain": ("head.",),
    "classify": ("backbone.mask_token",),
    "segment": ("backbone.norm.", "backbone.mask_token"),
}
IGNORED = 255  # labels of pixels that count for nothing, in training


class TensorReport(NamedTuple):
    """What became of every tensor, by our name where it has one, else by theirs."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]  # of our network
    unexpected: tuple[str, ...]  # without a place in it
    resized: tuple[str, ...]  # positions, to the grid that a config asks for
    left: tuple[str, ...] = ()  # known to be of no use: index buffers, the decoder of MAE


class ConvertedCheckpoint(NamedTuple):
    """A published network in our words."""

    model: Model
    state: State  # under the names of our objectives, in fp32
    purpose: Purpose
    pool: Pool
    family: Family
    preprocessing: dict[str, Any]  # mean, std, resolution, crop_ratio, interpolation, as far as the checkpoint says
    labels: tuple[str, ...]
    report: TensorReport
    source: str
    digest: str  # sha256 of the weights


def read(source: str | Path, *, partial: bool = False, heads: int = 0) -> ConvertedCheckpoint:
    """Published weights by path, hub id or timm:NAME. heads: of attention, where a bare file does not tell.

    BenchError for tensors without a place in our network, for a backbone that lacks some or has them in another shape;
    partial: the first two are only reported. A missing head is reported: going on from the backbone needs none.
    """
    found = locate(str(source))
    weights = opened(found)
    family, foreign = _ours(found, weights) or _foreign(weights, heads)
    state, report = _fitted(weights.name, foreign, partial)
    return ConvertedCheckpoint(
        model=foreign.model,
        state=state,
        purpose=foreign.purpose,
        pool=foreign.pool,
        family=family,
        preprocessing=foreign.preprocessing,
        labels=foreign.labels,
        report=report,
        source=str(source),
        digest=found.digest,
    )


def _ours(found: LocatedWeights, weights: RawCheckpoint) -> tuple[Family, ParsedCheckpoint] | None:
    """A finished run, or what `bench import` wrote: the names are ours already."""
    if found.is_run:
        stage = Run(found.path).stage()
        pool: Pool = stage.recipe.pool if stage.recipe else "token"
        return "bench", ParsedCheckpoint(stage.model, _plain(weights.state), pool=pool)
    if not (found.path / IMPORTED).is_file():
        return None
    facts = read_json(found.path / IMPORTED)
    model, pool = parse(Model, facts["model"], str(found.path)), facts["pool"]
    labels = tuple(facts.get("labels", ()))
    return "bench", ParsedCheckpoint(
        model, weights.state, pool=pool, preprocessing=facts.get("preprocessing", {}), labels=labels
    )


def _foreign(weights: RawCheckpoint, heads: int) -> tuple[Family, ParsedCheckpoint]:
    if huggingface.recognises(weights):
        return "transformers", huggingface.read(weights)
    if timm.recognises(weights):
        return "timm", timm.read(weights)
    if authors.recognises(weights):
        return "authors" if authors.are_theirs(weights) else "timm", authors.read(weights, heads=heads)
    if any(".layer.0." in name for name in weights.state):
        raise BenchError(f"{weights.name} looks like a model of transformers; its config.json must lie beside it")
    first = ", ".join([*weights.state][:3])
    raise BenchError(f"{weights.name} is no Vision Transformer of the authors, timm or transformers: it has {first}")


def _fitted(name: str, foreign: ParsedCheckpoint, partial: bool) -> tuple[State, TensorReport]:
    """The tensors that our network takes, and the report."""
    wanted = _wanted(foreign)
    surplus = [key for key in foreign.state if key not in wanted]
    spare = tuple(key for key in surplus if key.startswith(SPARE[foreign.purpose]))
    unexpected = (*foreign.unknown, *(key for key in surplus if key not in spare))
    missing = tuple(key for key in wanted if key not in foreign.state)
    lacking = [key for key in missing if not key.startswith(MAY_LACK)]
    if not partial:
        _refuse(name, "has, unexpectedly,", unexpected)
        _refuse(name, "lacks", lacking)
    given = {key: value for key, value in foreign.state.items() if key in wanted}
    state = {key: _resized(key, value, foreign.model) for key, value in given.items()}
    other = [key for key, value in state.items() if value.shape != wanted[key]]
    if other:
        shapes = (f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key])}" for key in other)
        raise BenchError(f"{name} has tensors of other shapes than its network: {listed_up_to(sorted(shapes), 5)}")
    resized = tuple(key for key, value in state.items() if value.shape != given[key].shape)
    matched = tuple(key for key in state if key not in resized)
    return state, TensorReport(matched, missing, unexpected, resized, (*foreign.left, *spare))


def _wanted(foreign: ParsedCheckpoint) -> dict[str, torch.Size]:
    """Names and shapes of our network's tensors; nothing is computed for it."""
    with torch.device("meta"):
        network = _network(foreign.model, foreign.purpose, foreign.pool, foreign.state)
    return {key: value.shape for key, value in network.trainable_state().items()}


def _network(model: Model, purpose: Purpose, pool: Pool, state: State) -> Objective:
    """Our network for a checkpoint, with starting weights."""
    if purpose == "segment":
        return segment(model, Recipe(), ignore_label=IGNORED)
    if purpose == "classify":
        representation = any(name.startswith("head.representation.") for name in state)
        return classify(model, Recipe(pool=pool), representation=representation)
    answers = len(state["lm_head.weight"]) if "lm_head.weight" in state else 1
    return Recover(build(model, hides=True), answers, everything=False)


def _resized(key: str, value: Tensor, model: Model) -> Tensor:
    """Positions of a square grid at the network's; others as they are, which a check of shapes then refuses."""
    prefix = 2 if model.distilled else 1
    if key == "backbone.pos_embed" and math.isqrt(value.shape[1] - prefix) ** 2 == value.shape[1] - prefix:
        return resize_embedding(value, model.grid, prefix_tokens=prefix)
    return resize_table(value, model.grid) if key.endswith(TABLE) and authors.is_square(value) else value


def _refuse(name: str, what: str, keys: Iterable[str]) -> None:
    if names := sorted(keys):
        raise BenchError(f"{name} {what} {listed_up_to(names, 5)}; --partial goes on without")


def objective(checkpoint: ConvertedCheckpoint) -> Objective:
    """Our network with the checkpoint's weights, in evaluation mode: `predict`, or `answers` of masked modelling.

    BenchError when parts are missing, since what a network without them says means nothing.
    """
    if missing := sorted(checkpoint.report.missing):
        raise BenchError(
            f"{checkpoint.source} lacks {listed_up_to(missing, 5)}, so there is nothing to predict with; "
            f"a stage can go on from it: --set finetune.start_from={checkpoint.source}"
        )
    built = _network(checkpoint.model, checkpoint.purpose, checkpoint.pool, checkpoint.state)
    built.load_trainable_state(checkpoint.state)
    return built.eval()


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
    """Write a trained network, or its state, as others read it; returns the files.

    hf: config.json and model.safetensors; timm: the same in timm's words; authors: checkpoint.pth.
    method: data2vec is written as transformers' Data2VecVision. BenchError for a network that the target does not have.
    """
    if to not in TARGETS:
        raise unknown("target", to, TARGETS)
    folder = Path(folder)
    state = _plain(trained.trainable_state() if isinstance(trained, Objective) else dict(trained))
    if pool == "mean":  # which does not read the layer before the classifier
        state = {name: value for name, value in state.items() if not name.startswith("head.representation.")}
    _writable(state, model, to)
    if to == "authors":
        return [_save_pickle(folder / "checkpoint.pth", authors.write(state, model))]
    if to == "timm":
        weights, config = timm.write(state, model, pool, labels=labels, preprocessing=dict(preprocessing or {}))
    else:
        weights, config = huggingface.write(state, model, pool, data2vec=method == "data2vec", labels=labels)
    save_weights(folder / "model.safetensors", weights)
    write_json(folder / "config.json", config)
    return [folder / "model.safetensors", folder / "config.json"]


def _plain(state: State) -> State:
    """What of a state is the network's own: no teacher that followed it, no counter."""
    return {name: value for name, value in state.items() if re.match(r"(backbone|head|lm_head|decoder)\.", name)}


def _writable(state: State, model: Model, to: Target) -> None:
    if model.trunk.startswith(CONVNET) and to != "timm":
        raise BenchError(f"{model.trunk} is a network of timm's; --to timm writes it")
    if any(name.startswith("head.linear.") for name in state):
        raise BenchError("a linear probe on every block is no network that others have; export what it was made on")


def _save_pickle(path: Path, held: dict[str, Any]) -> Path:
    """A .pth file, whole or not at all; plain data and tensors, so that weights_only reads it."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(held, file)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from None
    return path
