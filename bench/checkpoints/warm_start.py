"""Starting an objective from weights from outside: do they fit, which tensors are taken, what became of each.

Taken are the backbone, handed over as from an earlier stage (backbones.transfer), and of the rest whatever has the
name and shape it has here, such as the classifier of a network with as many classes.
Source: BEiT run_class_finetuning.py, DeiT main.py: `head` is left out only when its shape differs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from bench.checkpoints import conversion
from bench.checkpoints.conversion import ConvertedCheckpoint
from bench.checkpoints.formats.safe_open import opened
from bench.checkpoints.locate import LocatedWeights, locate
from bench.config.schema import SIZES, Model
from bench.config.stage import Stage
from bench.errors import BenchError, listed_up_to
from bench.methods.objective import Objective
from bench.models.backbone import CONVNET, Backbone
from bench.models.transfer import Transfer, part, transfer

log = logging.getLogger(__name__)

State = dict[str, Tensor]
MAY_LACK = ("mask_token", "norm.weight", "norm.bias")  # published without them; they begin as in a new network
HEADS = ("head.", "lm_head.", "decoder.")  # of classification, pretraining, segmentation
SAME = ("trunk", "width", "depth", "heads", "mlp_ratio", "patch_size", "distilled")


class WarmStart(NamedTuple):
    """What became of every tensor, by its name in the objective. `facts` say what the weights are."""

    facts: dict[str, Any]
    matched: tuple[str, ...]
    resized: tuple[str, ...] = ()  # to another grid
    shared: tuple[str, ...] = ()  # tables filled from the one that all blocks shared
    missing: tuple[str, ...] = ()  # begin as in a new network
    left: tuple[str, ...] = ()  # of the weights, without a place here
    unexpected: tuple[str, ...] = ()  # unknown tensors, left out because start_partial says so

    def told(self) -> str:
        """The report in one line: 'matched 148, resized 12, ...'."""
        return ", ".join(f"{name} {len(keys)}" for name, keys in self._asdict().items() if name != "facts" and keys)


def warm_start(stage: Stage, into: Objective, output: Path) -> WarmStart:
    """Start `into` from the weights that the stage names, and say what became of every tensor.

    BenchError when they are not what the plan saw, do not fit, or hold something unexpected.
    """
    assert stage.recipe is not None and stage.start is not None
    found = _found(stage, output)
    backbone: Any = getattr(into, "backbone", None)
    where, partial = f"{stage.kind}.start_from = {stage.start.id}", stage.recipe.start_partial
    if isinstance(backbone, Backbone):
        started = _network(_checkpoint(found, stage), into, backbone, stage.model, where)
    elif isinstance(backbone, nn.Module):
        started = _convnet(opened(found).state, backbone, partial, where)
    else:
        started = _whole(found, into, stage, where)
    into.started()
    facts = {**stage.start.model_dump(exclude={"root"}), **started.facts}
    log.info("weights from %s: %s", stage.start.name, started.told())
    return started._replace(facts=facts)


def check_starts(stages: Iterable[Stage], output: Path) -> None:
    """BenchError for the first planned stage whose weights from outside do not fit its transformer."""
    for stage in stages:
        if stage.start is not None and stage.kind != "tokenizer" and not stage.model.trunk.startswith(CONVNET):
            checkpoint = _checkpoint(_found(stage, output), stage)
            check_fit(checkpoint.model, stage.model, f"{stage.kind}.start_from = {stage.start.id}")


def _checkpoint(found: LocatedWeights, stage: Stage) -> ConvertedCheckpoint:
    """The weights as a network of ours; a bare file does not tell how many heads it has, the stage does."""
    assert stage.recipe is not None
    return conversion.read(found.path, partial=stage.recipe.start_partial, heads=stage.model.heads)


def _found(stage: Stage, output: Path) -> LocatedWeights:
    """The planned weights, where they were found or where the same name leads now."""
    assert stage.recipe is not None and stage.start is not None
    root = stage.start.root
    found = locate(root if root and Path(root).exists() else stage.recipe.start_from, output)
    if found.digest != stage.start.digest:
        raise BenchError(
            f"{stage.kind}.start_from: {found.path} holds other weights (sha256 {found.digest[:12]}) than when the "
            f"stage was planned ({stage.start.digest[:12]}); run the command again"
        )
    return found


def _network(
    checkpoint: ConvertedCheckpoint, into: Objective, backbone: Backbone, model: Model, where: str
) -> WarmStart:
    """Hand over the backbone of a transformer, and of the rest what has its name and shape here."""
    check_fit(checkpoint.model, model, where)
    theirs, ours = checkpoint.state, into.trainable_state()
    given = part(theirs, "backbone")
    lacking = tuple(key for key in MAY_LACK if key in backbone.state_dict() and key not in given)
    moved = transfer(given | {key: backbone.state_dict()[key] for key in lacking}, backbone)
    rest = {key: value for key, value in theirs.items() if not key.startswith("backbone.")}
    heads = {key for key in ours if key.startswith(HEADS)}
    kept = {key: value for key, value in rest.items() if key in heads and ours[key].shape == value.shape}
    into.load_state_dict(kept, strict=False)
    names = _named(moved._replace(matched=tuple(key for key in moved.matched if key not in lacking)))
    return WarmStart(
        facts={"family": checkpoint.family, "purpose": checkpoint.purpose, "model": checkpoint.model.model_dump()},
        matched=(*names["matched"], *kept),
        resized=names["resized"],
        shared=names["shared"],
        missing=(*(f"backbone.{key}" for key in lacking), *sorted(heads - kept.keys())),
        left=(*names["left"], *sorted(rest.keys() - kept.keys()), *checkpoint.report.left),
        unexpected=tuple(checkpoint.report.unexpected),
    )


def _named(moved: Transfer) -> dict[str, tuple[str, ...]]:
    """A hand-over with the names that the tensors have in an objective."""
    return {name: tuple(f"backbone.{key}" for key in keys) for name, keys in moved._asdict().items()}


def check_fit(theirs: Model, ours: Model, where: str) -> None:
    """BenchError for a network that is not this stage's, with the values of model.* that would fit."""
    wrong = unlike(theirs, ours)
    if not wrong:
        return
    told = "; ".join(f"{name} is {value} there, {getattr(ours, name)} here" for name, value in wrong.items())
    sizes = {numbers: name for name, numbers in SIZES.items()}
    size = sizes.get((theirs.width, theirs.depth, theirs.heads), "")
    named = f" (that is --size {size})" if size and {"width", "depth", "heads"} & wrong.keys() else ""
    stage = where.partition(".")[0]
    if stage != "pretrain" and wrong.get("position") == "shared-relative":
        wrong["position"] = "relative"  # each block with a copy of the shared table, as the authors fine-tune
    fits = " ".join(f"--set {stage}.model.{name}={_written(value)}" for name, value in wrong.items())
    raise BenchError(f"{where} does not fit this stage's network: {told}; what fits is {fits}{named}")


def unlike(theirs: Model, ours: Model) -> dict[str, Any]:
    """The values of a checkpoint's network that this one must have and has not."""
    wrong = {name: getattr(theirs, name) for name in SAME if getattr(theirs, name) != getattr(ours, name)}
    cloned = (theirs.position, ours.position) == ("shared-relative", "relative")
    if theirs.position != ours.position and not cloned:
        wrong["position"] = theirs.position
    if bool(theirs.layer_scale) != bool(ours.layer_scale):
        wrong["layer_scale"] = theirs.layer_scale
    return wrong


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _convnet(state: State, network: nn.Module, partial: bool, where: str) -> WarmStart:
    """timm's own weights for a convolutional network; its classifier begins anew where the classes are others."""
    wanted = network.state_dict()
    settings: Any = getattr(network, "pretrained_cfg", {})
    classifier = settings.get("classifier") or ()
    heads = tuple(f"{name}." for name in ((classifier,) if isinstance(classifier, str) else classifier))
    given = {key: value for key, value in state.items() if key in wanted and value.shape == wanted[key].shape}
    lacking, unknown = wanted.keys() - given.keys(), state.keys() - given.keys()
    _refuse(where, "lacks or has in another shape", [key for key in lacking if not key.startswith(heads)])
    unexpected = sorted(key for key in unknown if not key.startswith(heads))
    if not partial:
        _refuse(where, "has, unexpectedly,", unexpected)
    network.load_state_dict(given, strict=False)
    return WarmStart(
        facts={"family": "timm"},
        matched=tuple(f"backbone.{key}" for key in given),
        missing=tuple(f"backbone.{key}" for key in sorted(lacking)),
        left=tuple(sorted(key for key in unknown if key.startswith(heads))),
        unexpected=tuple(unexpected),
    )


def _whole(found: LocatedWeights, into: Objective, stage: Stage, where: str) -> WarmStart:
    """A network without a backbone, a tokenizer, goes on from a finished run of its own kind."""
    state = opened(found).state
    if not found.is_run or state.keys() != into.trainable_state().keys():
        raise BenchError(f"{where}: a {stage.kind} goes on from a run of a {stage.kind} with the same numbers only")
    into.load_trainable_state(state)
    return WarmStart(facts={"family": "bench"}, matched=tuple(state))


def _refuse(where: str, what: str, keys: Iterable[str]) -> None:
    if names := sorted(keys):
        raise BenchError(f"{where} {what} {listed_up_to(names, 5)}; --set ...start_partial=true leaves out the rest")
