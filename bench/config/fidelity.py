"""How close an arm is to the published method: its level, and in words all that is not as the authors do it.

The one place that decides. A level is what the method or its variant says of its code: exact when tests/parity holds
it to the authors' numbers. An arm can only be further away than that: `close` when a departure concerns it, or a number
of its recipe is another than the published one; `placeholder` when a part of it is a stand-in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.config.overrides import SIZE_INDEPENDENT
from bench.config.precedence import ArmConfig, stages_of_variant, variant_of
from bench.config.schema import Arm, Departure, Fidelity, Method, Recipe
from bench.config.stage import Stage

OF_THE_MACHINE = {"recipe.precision"}  # what does not make a recipe another one


def level(arm_config: ArmConfig, stages: Sequence[Stage]) -> Fidelity:
    """The level of an arm that goes through these stages."""
    if stand_ins(stages):
        return "placeholder"
    numbers = {place for stage in stages for place in stage.departures} - OF_THE_MACHINE
    return _at_most(
        variant_of(arm_config.method, arm_config.variant).fidelity, bool(numbers or _told(arm_config, stages))
    )


def departures(arm_config: ArmConfig, stages: Sequence[Stage]) -> tuple[str, ...]:
    """In words; the numbers that differ are in the stages."""
    return (*stand_ins(stages), *_told(arm_config, stages))


def stand_ins(stages: Sequence[Stage]) -> tuple[str, ...]:
    """Parts that only hold the place of what they are called: tokenizers and teachers that saw a handful of pictures.

    A tokenizer that has been trained on the task's own pictures is a tokenizer, a smaller one than DALL-E's.
    """
    few = {
        stage.kind: stage.data["train"]
        for stage in stages
        if stage.kind in SIZE_INDEPENDENT and stage.data["train"].limit
    }
    return tuple(
        f"The {kind} is a stand-in: it learned from {data.images:,} images, because the data were limited."
        for kind, data in few.items()
    )


def as_published(method: Method, variant: str) -> Fidelity:
    """The level of a method or variant as its paper runs it, whatever the task."""
    arm_config = ArmConfig(Arm(method=method.name), method, variant, "")
    numbers = {f"{stage}.options.{name}": value for stage, own in method.options.items() for name, value in own.items()}
    for stage, recipe in method.recipe.items():
        numbers |= {f"{stage}.recipe.{name}": value for name, value in Recipe(**recipe).model_dump().items()}
    for place, value in variant_of(method, variant).set.items():
        stage, _, rest = place.partition(".")
        numbers[f"{stage}.{rest if '.' in rest else f'recipe.{rest}'}"] = value
    concerned = [
        one
        for one in method.departures
        if not one.size
        and one.stage in ("", *stages_of_variant(arm_config))
        and all(numbers.get(f"{one.stage}.{place}") == value for place, value in one.when.items())
    ]
    return _at_most(variant_of(method, variant).fidelity, bool(concerned))


def _at_most(declared: Fidelity, departs: bool) -> Fidelity:
    return "close" if declared == "exact" and departs else declared


def _told(arm_config: ArmConfig, stages: Sequence[Stage]) -> tuple[str, ...]:
    """The method's departures that concern an arm."""
    return tuple(one.text for one in arm_config.method.departures if _concerns(one, arm_config.size, stages))


def _concerns(one: Departure, size: str, stages: Sequence[Stage]) -> bool:
    if one.size not in ("", size):
        return False
    own = [stage for stage in stages if stage.kind == one.stage]
    return not one.stage or any(all(_value(stage, place) == v for place, v in one.when.items()) for stage in own)


def _value(stage: Stage, place: str) -> Any:
    """The value of a stage at 'recipe.lr', 'model.position' or 'options.tokenizer'."""
    part, _, name = place.partition(".")
    values = getattr(stage, part)
    return values.get(name) if isinstance(values, dict) else getattr(values, name, None)
