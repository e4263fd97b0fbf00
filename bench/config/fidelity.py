"""Fidelity: how close an arm is to the published method, and its departures in words.

The one place that decides. The method or its variant declares the level of its code: exact when tests/parity compares
it with the authors' numbers. An arm can only be lower: `close` when a departure applies to it or its recipe has a value
that is not the published one; `placeholder` when one of its networks is a stand-in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.config.overrides import SIZE_INDEPENDENT
from bench.config.precedence import ArmConfig, stages_of, variant_of
from bench.config.schema import Arm, Departure, Fidelity, Method, Recipe
from bench.config.stage import Stage

OF_THE_MACHINE = {"recipe.precision"}  # depends on the hardware, so it does not make a recipe another one


def level(config: ArmConfig, stages: Sequence[Stage]) -> Fidelity:
    """The level of an arm that goes through these stages."""
    if stand_ins(stages):
        return "placeholder"
    values = {place for stage in stages for place in stage.departures} - OF_THE_MACHINE
    departs = bool(values or _departures_of(config, stages))
    return _lower(variant_of(config.method, config.variant).fidelity, departs)


def departures(config: ArmConfig, stages: Sequence[Stage]) -> tuple[str, ...]:
    """The departures of an arm in words; the values that differ are in its stages."""
    return (*stand_ins(stages), *_departures_of(config, stages))


def stand_ins(stages: Sequence[Stage]) -> tuple[str, ...]:
    """Tokenizers and teachers that were trained on a limited split, a sentence each.

    A tokenizer that was trained on all of the task's images is no stand-in, only smaller than DALL-E's.
    """
    splits = {stage.kind: stage.data["train"] for stage in stages if stage.kind in SIZE_INDEPENDENT}
    return tuple(
        f"The {kind} is a stand-in: it learned from {split.images:,} images, because the data were limited."
        for kind, split in splits.items()
        if split.limit
    )


def published_level(method: Method, variant: str) -> Fidelity:
    """The level of a method or variant with its published recipe, whatever the task."""
    config = ArmConfig(Arm(method=method.name), method, variant, "")
    values = {f"{stage}.options.{name}": value for stage, own in method.options.items() for name, value in own.items()}
    for stage, recipe in method.recipe.items():
        values |= {f"{stage}.recipe.{name}": value for name, value in Recipe(**recipe).model_dump().items()}
    for place, value in variant_of(method, variant).set.items():
        stage, _, rest = place.partition(".")
        values[f"{stage}.{rest if '.' in rest else f'recipe.{rest}'}"] = value
    departs = any(
        not departure.size  # a departure of one size says nothing of the method
        and departure.stage in ("", *stages_of(config))
        and all(values.get(f"{departure.stage}.{place}") == value for place, value in departure.when.items())
        for departure in method.departures
    )
    return _lower(variant_of(method, variant).fidelity, departs)


def _lower(declared: Fidelity, departs: bool) -> Fidelity:
    return "close" if declared == "exact" and departs else declared


def _departures_of(config: ArmConfig, stages: Sequence[Stage]) -> tuple[str, ...]:
    """The method's departures that apply to an arm."""
    return tuple(d.text for d in config.method.departures if _applies(d, config.size, stages))


def _applies(departure: Departure, size: str, stages: Sequence[Stage]) -> bool:
    if departure.size not in ("", size):
        return False
    if not departure.stage:
        return True
    own = [stage for stage in stages if stage.kind == departure.stage]
    return any(all(_value(stage, place) == v for place, v in departure.when.items()) for stage in own)


def _value(stage: Stage, place: str) -> Any:
    """The value of a stage at 'recipe.lr', 'model.position' or 'options.tokenizer'."""
    part, _, name = place.partition(".")
    values = getattr(stage, part)
    return values.get(name) if isinstance(values, dict) else getattr(values, name, None)
