"""ViT: supervised learning of labels, from scratch (P-ViT = arXiv 2010.11929). Numbers and sources: vit.toml."""

from __future__ import annotations

from bench.config.stage import Stage
from bench.methods import Parts, View
from bench.methods.classification import build_classifier
from bench.methods.objective import Objective
from bench.pipeline.transforms import train_view


def view(stage: Stage) -> View:
    """Augmented images with their labels."""
    assert stage.recipe
    return train_view(stage.recipe, stage.model, stage.protocol)


def objective(stage: Stage, parts: Parts) -> Objective:
    """A classifier from starting weights."""
    assert stage.recipe
    options = stage.options
    return build_classifier(
        stage.model,
        stage.recipe,
        style=str(options["initialisation"]),
        bias=float(options["head_bias"]),
        representation=bool(options["representation"]),
    )
