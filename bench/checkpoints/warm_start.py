"""Warm start: start an objective from pretrained weights, and report what became of each tensor.

The backbone is transferred as from an earlier stage (models.transfer). Other tensors are loaded if the objective has
one of the same name and shape, such as the classifier of a network with as many classes.
Source: BEiT run_class_finetuning.py, DeiT main.py: `head` is left out only when its shape differs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bench.checkpoints import conversion
from bench.checkpoints.conversion import ConvertedCheckpoint
from bench.checkpoints.formats.safe_open import open_weights
from bench.checkpoints.locate import LocatedWeights, locate
from bench.config.schema import SIZES, Model
from bench.config.stage import Stage
from bench.errors import BenchError, listed_up_to
from bench.methods.objective import Objective
from bench.models.backbone import CONVNET, Backbone
from bench.models.transfer import Transfer, submodule_state, transfer

log = logging.getLogger(__name__)

State = dict[str, Tensor]
MAY_LACK = ("mask_token", "norm.weight", "norm.bias")  # often not published; they start as in a new network
HEADS = ("head.", "lm_head.", "decoder.")  # of classification, pretraining, segmentation
MUST_AGREE = ("trunk", "width", "depth", "heads", "mlp_ratio", "patch_size", "distilled")


@dataclass(frozen=True, slots=True)
class WarmStart:
    """What became of each tensor, by its name in the objective. `facts`: what the weights are."""

    facts: dict[str, Any]
    matched: tuple[str, ...]
    resized: tuple[str, ...] = ()  # to another grid
    shared: tuple[str, ...] = ()  # tables filled from the one that all blocks shared
    missing: tuple[str, ...] = ()  # start as in a new network
    left: tuple[str, ...] = ()  # of the weights, without a place here
    unexpected: tuple[str, ...] = ()  # unknown tensors, skipped because of start_partial

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for start.json."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def summary(self) -> str:
        """The report in one line: 'matched 148, resized 12, ...'."""
        return ", ".join(f"{name} {len(keys)}" for name, keys in self.as_dict().items() if name != "facts" and keys)


def warm_start(stage: Stage, into: Objective, output: Path) -> WarmStart:
    """Load the pretrained weights that the stage names into an objective, and report what became of each tensor.

    BenchError when they differ from those of the plan, do not fit, or hold something unexpected.
    """
    assert stage.recipe is not None and stage.start is not None
    located = _locate_start(stage, output)
    backbone: Any = getattr(into, "backbone", None)
    where, partial = f"{stage.kind}.start_from = {stage.start.id}", stage.recipe.start_partial
    if isinstance(backbone, Backbone):
        report = _start_transformer(_read_checkpoint(located, stage), into, backbone, stage.model, where)
    elif isinstance(backbone, nn.Module):
        report = _start_convnet(open_weights(located).state, backbone, partial, where)
    else:
        report = _start_whole(located, into, stage, where)
    into.after_warm_start()
    facts = {**stage.start.model_dump(exclude={"root"}), **report.facts}
    log.info("weights from %s: %s", stage.start.name, report.summary())
    return replace(report, facts=facts)


def check_starts(stages: Iterable[Stage], output: Path) -> None:
    """Raise BenchError for the first planned stage whose pretrained weights do not fit its transformer."""
    for stage in stages:
        if stage.start is not None and stage.kind != "tokenizer" and not stage.model.trunk.startswith(CONVNET):
            checkpoint = _read_checkpoint(_locate_start(stage, output), stage)
            check_fit(checkpoint.model, stage.model, f"{stage.kind}.start_from = {stage.start.id}")


def _read_checkpoint(located: LocatedWeights, stage: Stage) -> ConvertedCheckpoint:
    assert stage.recipe is not None
    # A bare file does not tell its number of attention heads: it must be the stage's for the weights to fit.
    return conversion.read(located.path, partial=stage.recipe.start_partial, heads=stage.model.heads)


def _locate_start(stage: Stage, output: Path) -> LocatedWeights:
    """Locate the planned weights at their planned path, or by their name if they have moved. BenchError for others."""
    assert stage.recipe is not None and stage.start is not None
    root = stage.start.root
    located = locate(root if root and Path(root).exists() else stage.recipe.start_from, output)
    if located.digest != stage.start.digest:
        raise BenchError(
            f"{stage.kind}.start_from: {located.path} holds other weights (sha256 {located.digest[:12]}) than when the "
            f"stage was planned ({stage.start.digest[:12]}); run the command again"
        )
    return located


def _start_transformer(
    checkpoint: ConvertedCheckpoint, into: Objective, backbone: Backbone, model: Model, where: str
) -> WarmStart:
    """Transfer the backbone, and load the tensors of heads whose names and shapes agree."""
    check_fit(checkpoint.model, model, where)
    theirs, ours, own = checkpoint.state, into.trainable_state(), backbone.state_dict()
    published = submodule_state(theirs, "backbone")
    lacking = tuple(key for key in MAY_LACK if key in own and key not in published)
    transferred = transfer(published | {key: own[key] for key in lacking}, backbone)
    others = {key: value for key, value in theirs.items() if not key.startswith("backbone.")}
    heads = {key for key in ours if key.startswith(HEADS)}
    loaded = {key: value for key, value in others.items() if key in heads and ours[key].shape == value.shape}
    into.load_state_dict(loaded, strict=False)
    matched = tuple(key for key in transferred.matched if key not in lacking)
    names = _names_in_objective(transferred._replace(matched=matched))
    return WarmStart(
        facts={"family": checkpoint.family, "purpose": checkpoint.purpose, "model": checkpoint.model.model_dump()},
        matched=(*names["matched"], *loaded),
        resized=names["resized"],
        shared=names["shared"],
        missing=(*(f"backbone.{key}" for key in lacking), *sorted(heads - loaded.keys())),
        left=(*names["left"], *sorted(others.keys() - loaded.keys()), *checkpoint.report.left),
        unexpected=tuple(checkpoint.report.unexpected),
    )


def _names_in_objective(transferred: Transfer) -> dict[str, tuple[str, ...]]:
    """A transfer's report with the names that the tensors have in an objective."""
    return {name: tuple(f"backbone.{key}" for key in keys) for name, keys in transferred._asdict().items()}


def check_fit(theirs: Model, ours: Model, where: str) -> None:
    """Raise BenchError for weights of another network than this stage's, with the values of model.* that would fit."""
    wrong = model_differences(theirs, ours)
    if not wrong:
        return
    differences = "; ".join(f"{name} is {value} there, {getattr(ours, name)} here" for name, value in wrong.items())
    sizes = {numbers: name for name, numbers in SIZES.items()}
    size = sizes.get((theirs.width, theirs.depth, theirs.heads), "")
    hint = f" (that is --size {size})" if size and {"width", "depth", "heads"} & wrong.keys() else ""
    stage = where.partition(".")[0]
    if stage != "pretrain" and wrong.get("position") == "shared-relative":
        wrong["position"] = "relative"  # each block with a copy of the shared table, as the authors fine-tune
    fits = " ".join(f"--set {stage}.model.{name}={_as_option(value)}" for name, value in wrong.items())
    raise BenchError(f"{where} does not fit this stage's network: {differences}; what fits is {fits}{hint}")


def model_differences(theirs: Model, ours: Model) -> dict[str, Any]:
    """The values of a checkpoint's model that ours must share and does not."""
    wrong = {name: getattr(theirs, name) for name in MUST_AGREE if getattr(theirs, name) != getattr(ours, name)}
    cloned = (theirs.position, ours.position) == ("shared-relative", "relative")  # by transfer
    if theirs.position != ours.position and not cloned:
        wrong["position"] = theirs.position
    if bool(theirs.layer_scale) != bool(ours.layer_scale):  # the number is only an initial value
        wrong["layer_scale"] = theirs.layer_scale
    return wrong


def _as_option(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _start_convnet(state: State, network: nn.Module, partial: bool, where: str) -> WarmStart:
    """Load timm's weights into a convolutional network; its classifier starts anew if the number of classes differs."""
    ours = network.state_dict()
    settings: Any = getattr(network, "pretrained_cfg", {})
    classifier = settings.get("classifier") or ()
    heads = tuple(f"{name}." for name in ((classifier,) if isinstance(classifier, str) else classifier))
    loaded = {key: value for key, value in state.items() if key in ours and value.shape == ours[key].shape}
    lacking, unknown = ours.keys() - loaded.keys(), state.keys() - loaded.keys()
    _refuse(where, "lacks or has in another shape", [key for key in lacking if not key.startswith(heads)])
    unexpected = sorted(key for key in unknown if not key.startswith(heads))
    if not partial:
        _refuse(where, "has, unexpectedly,", unexpected)
    network.load_state_dict(loaded, strict=False)
    return WarmStart(
        facts={"family": "timm"},
        matched=tuple(f"backbone.{key}" for key in loaded),
        missing=tuple(f"backbone.{key}" for key in sorted(lacking)),
        left=tuple(sorted(key for key in unknown if key.startswith(heads))),
        unexpected=tuple(unexpected),
    )


def _start_whole(located: LocatedWeights, into: Objective, stage: Stage, where: str) -> WarmStart:
    """Load all weights of a finished run of the same kind, for a network without a backbone: a tokenizer."""
    state = open_weights(located).state
    if not located.is_run or state.keys() != into.trainable_state().keys():
        raise BenchError(f"{where}: a {stage.kind} can start only from a run of a {stage.kind} with the same numbers")
    into.load_trainable_state(state)
    return WarmStart(facts={"family": "bench"}, matched=tuple(state))


def _refuse(where: str, what: str, keys: Iterable[str]) -> None:
    if names := sorted(keys):
        raise BenchError(f"{where} {what} {listed_up_to(names, 5)}; --set ...start_partial=true loads the rest")
