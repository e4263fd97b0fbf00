"""ViT: supervised learning of labels, from scratch (P-ViT = arXiv 2010.11929). Numbers and sources: vit.toml."""

from __future__ import annotations

from bench.config.stage import Stage
from bench.methods import Parts, View
from bench.methods.classification import classify
from bench.methods.objective import Objective
from bench.pipeline.transforms import train_view


def view(stage: Stage) -> View:
    """Augmented images with their labels."""
    assert stage.recipe
    return train_view(stage.recipe, stage.model, stage.protocol)


def objective(stage: Stage, parts: Parts) -> Objective:
    """A classifier from starting weights."""
    assert stage.recipe
    style, bias, representation = (stage.options[key] for key in ("initialisation", "head_bias", "representation"))
    return classify(stage.model, stage.recipe, style=str(style), bias=float(bias), representation=bool(representation))
