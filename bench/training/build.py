"""From a stage to what it trains: its view, and its objective with starting weights and parts of earlier stages."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from bench import methods
from bench.checkpoints.weights import load_weights
from bench.config.stage import Stage
from bench.errors import BenchError
from bench.files import write_json
from bench.launch.settings import read_settings
from bench.methods import Parts, tokenizer
from bench.methods.classification import build_classifier
from bench.methods.linear_probe import build_probe
from bench.methods.objective import Objective
from bench.methods.segmentation import build_segmenter
from bench.models.backbone import Backbone
from bench.models.transfer import Transfer, submodule_state, transfer
from bench.pipeline.segmentation_transforms import map_eval_view, map_train_view
from bench.pipeline.transforms import View, eval_view, train_view
from bench.runs.run import Run
from bench.seeding import derive, seed_all

log = logging.getLogger(__name__)

START_REPORT = "start.json"  # of a run that starts from pretrained weights: what became of every tensor
OWN = ("pretrain", "supervised")  # stages whose view and objective are the method's own


def view(stage: Stage) -> View:
    """The training view of a stage."""
    assert stage.recipe is not None
    if stage.kind in OWN:
        return methods.load(stage.method).view(stage)
    if stage.kind == "tokenizer":
        return tokenizer.view(stage)
    if stage.model.decoder:
        return map_train_view(stage.recipe, stage.model, stage.protocol)
    return train_view(stage.recipe, stage.model, stage.protocol)


def scoring_view(stage: Stage) -> View:
    """The evaluation view of a stage."""
    return map_eval_view(stage.protocol) if stage.model.decoder else eval_view(stage.protocol)


def objective(stage: Stage, run: Run) -> Objective:
    """What a stage trains, at its starting weights: those of its seed, of an earlier stage, or pretrained ones."""
    parents = _parents(stage, run)
    start = parents.pop("start", None)
    network = _initialise(stage, {role: load_trained(parent) for role, parent in parents.items()})
    if start is not None:
        hand_over(start, network)
    if stage.start is not None:
        from bench.checkpoints.warm_start import warm_start

        report = warm_start(stage, network, output=run.output)
        if os.environ.get("RANK", "0") == "0":  # the others did the same
            write_json(run.path(START_REPORT), report.as_dict())
    return network


def load_trained(run: Run) -> Objective:
    """The objective of a finished stage, with its final weights."""
    stage = run.stage()
    # "start" only gave starting weights, which the final ones replace.
    parts = {role: load_trained(parent) for role, parent in _parents(stage, run).items() if role != "start"}
    network = _initialise(stage, parts)
    network.load_trainable_state(load_weights(run.path("final", "model.safetensors")))
    return network


def load_for_scoring(stage: Stage, run: Run) -> Objective:
    """What an evaluation scores: the stage before it, or pretrained weights.

    BenchError when these are not the weights that the evaluation was planned with.
    """
    if stage.start is None:
        return load_trained(_parents(stage, run)["model"])
    from bench.checkpoints import conversion
    from bench.checkpoints.locate import locate

    root = stage.start.root
    located = locate(root if root and Path(root).exists() else stage.start.id, run.output)
    if located.digest != stage.start.digest:
        raise BenchError(
            f"{located.path} holds other weights (sha256 {located.digest[:12]}) than when the evaluation was planned "
            f"({stage.start.digest[:12]}); run the command again"
        )
    return conversion.build_objective(conversion.read(located.path, partial=bool(stage.options.get("partial", False))))


def hand_over(start: Run, into: Objective) -> Transfer:
    """Load an earlier stage's backbone into the backbone of an objective. Returns what became of every tensor."""
    backbone: Any = getattr(into, "backbone", None)
    if not isinstance(backbone, Backbone):
        raise BenchError(f"{start.root.name} trained a transformer, which this stage's network is not")
    report = transfer(submodule_state(load_weights(start.path("final", "model.safetensors")), "backbone"), backbone)
    counts = {name: len(keys) for name, keys in report._asdict().items()}
    log.info("weights from %s: %s", start.root.name, ", ".join(f"{n} {name}" for name, n in counts.items()))
    return report


def _initialise(stage: Stage, parts: Parts) -> Objective:
    """The objective of a stage, at the starting weights that its seed gives. parts: what earlier stages trained."""
    assert stage.recipe is not None
    seed_all(derive(stage.seed, "init", stage.kind))
    model, recipe = stage.model, stage.recipe
    if stage.kind in OWN:
        return methods.load(stage.method).objective(stage, parts)
    if stage.kind == "tokenizer":
        return tokenizer.objective(stage)
    if stage.kind == "probe":
        return build_probe(model, layer=int(stage.options.get("layer", 0)))
    if model.decoder:
        return build_segmenter(model, recipe, ignore_label=stage.protocol.ignore_label)
    return build_classifier(model, recipe)


def _parents(stage: Stage, run: Run) -> dict[str, Run]:
    """The runs of a stage's parents, by role, in the folders that launch.json names."""
    if not stage.parents:
        return {}
    folders = read_settings(run).parents
    missing = [key for key in stage.parents.values() if key not in folders]
    if missing:
        raise BenchError(f"{run.root}: launch.json names no folder for the earlier stage {missing[0]}")
    return {role: Run(Path(folders[key])) for role, key in stage.parents.items()}
