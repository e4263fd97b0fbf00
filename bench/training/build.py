"""From a stage to what it trains: the view, the objective from its starting weights, the parts from earlier stages."""

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

ADOPTED = "start.json"  # in a run that starts from weights from outside: what became of every tensor
OWN = ("pretrain", "supervised")  # stages whose view and objective are the method's own


def view(stage: Stage) -> View:
    """What a stage learns from."""
    assert stage.recipe is not None
    if stage.kind in OWN:
        return methods.load(stage.method).view(stage)
    if stage.kind == "tokenizer":
        return tokenizer.view(stage)
    if stage.model.decoder:
        return map_train_view(stage.recipe, stage.model, stage.protocol)
    return train_view(stage.recipe, stage.model, stage.protocol)


def scoring_view(stage: Stage) -> View:
    """What a stage is scored on."""
    return map_eval_view(stage.protocol) if stage.model.decoder else eval_view(stage.protocol)


def objective(stage: Stage, run: Run) -> Objective:
    """What a stage trains, at its starting weights: the seed's, and those of the stages it goes on from."""
    parents = _parents(stage, run)
    start = parents.pop("start", None)
    built = _built(stage, {role: trained(parent) for role, parent in parents.items()})
    if start is not None:
        hand_over(start, built)
    if stage.start is not None:
        from bench.checkpoints.warm_start import warm_start

        started = warm_start(stage, built, output=run.output)
        if os.environ.get("RANK", "0") == "0":  # the others did the same
            write_json(run.path(ADOPTED), started.as_dict())
    return built


def trained(run: Run) -> Objective:
    """The objective of a finished stage, with what it learned."""
    stage = run.stage()
    parts = {role: trained(parent) for role, parent in _parents(stage, run).items() if role != "start"}
    built = _built(stage, parts)
    built.load_trainable_state(load_weights(run.path("final", "model.safetensors")))
    return built


def scored(stage: Stage, run: Run) -> Objective:
    """What an evaluation scores: the stage before it, or weights from outside, which must be those of the plan."""
    if stage.start is None:
        return trained(_parents(stage, run)["model"])
    from bench.checkpoints import conversion
    from bench.checkpoints.locate import locate

    root = stage.start.root
    found = locate(root if root and Path(root).exists() else stage.start.id, run.output)
    if found.digest != stage.start.digest:
        raise BenchError(
            f"{found.path} holds other weights (sha256 {found.digest[:12]}) than when the evaluation was planned "
            f"({stage.start.digest[:12]}); run the command again"
        )
    return conversion.build_objective(conversion.read(found.path, partial=bool(stage.options.get("partial", False))))


def hand_over(start: Run, into: Objective) -> Transfer:
    """Start the backbone of an objective from what an earlier stage learned."""
    backbone: Any = getattr(into, "backbone", None)
    if not isinstance(backbone, Backbone):
        raise BenchError(f"{start.root.name} trained a transformer, which this stage's network is not")
    report = transfer(submodule_state(load_weights(start.path("final", "model.safetensors")), "backbone"), backbone)
    counts = {name: len(keys) for name, keys in report._asdict().items()}
    log.info("weights from %s: %s", start.root.name, ", ".join(f"{n} {name}" for name, n in counts.items()))
    return report


def _built(stage: Stage, parts: Parts) -> Objective:
    """An objective from the weights that the stage's seed gives."""
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
    """The runs a stage starts from, by role, at the folders its launcher noted."""
    if not stage.parents:
        return {}
    folders = read_settings(run).parents
    missing = [key for key in stage.parents.values() if key not in folders]
    if missing:
        raise BenchError(f"{run.root}: launch.json names no folder for the earlier stage {missing[0]}")
    return {role: Run(Path(folders[key])) for role, key in stage.parents.items()}
