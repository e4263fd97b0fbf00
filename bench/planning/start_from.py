"""Pretrained weights in a plan: which stages of an arm they replace, and what the plan records of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.config.overrides import SIZE_INDEPENDENT
from bench.config.schema import StageKind
from bench.config.stage import STARTING, Start

HELPERS = {"pretrain": "tokenizer", "supervised": "teacher"}  # the network that a stage trains with


def probe_weights(source: str, output: Path) -> Start:
    """Locate the weights that a `start_from` names. BenchError when there are none, or they cannot be downloaded."""
    from bench.checkpoints.locate import TIMM, locate

    weights = locate(source, output)
    on_hub = bool(weights.revision) or source.startswith(TIMM)
    return Start(
        id=source if on_hub else weights.path.name,
        digest=weights.digest,
        root=str(weights.path.absolute()),
        revision=weights.revision,
    )


def assume_weights(source: str, output: Path) -> Start:
    """As `probe_weights`, without looking for them."""
    return Start(id=source, digest="not looked at")


def needed_stages(kinds: Sequence[StageKind], pretrained: Sequence[bool]) -> list[bool]:
    """Which stages of a chain still have to run. pretrained: which of them start from pretrained weights.

    The chain begins at the last pretrained kind, at the first pretrained stage of that kind. Of the stages before it,
    only a tokenizer or teacher that a later stage trains with is needed.
    """
    if not any(pretrained):
        return [True] * len(kinds)
    last = max(number for number, starts in enumerate(pretrained) if starts)
    first = next(number for number, starts in enumerate(pretrained) if starts and kinds[number] == kinds[last])
    helpers = {HELPERS[kind] for kind in kinds[first:] if kind in HELPERS}
    return [number >= first or (kind in SIZE_INDEPENDENT and kind in helpers) for number, kind in enumerate(kinds)]


def starts_here(source: str, before: Mapping[str, str]) -> bool:
    """Whether a stage loads the weights at `source`: not when an earlier stage of the arm did, or was trained.

    before: role -> key of the earlier stages.
    """
    return bool(source) and not any(role not in SIZE_INDEPENDENT for role in before)


def departures(values: Mapping[str, tuple[Any, Any]], start: Start | None) -> dict[str, tuple[Any, Any]]:
    """Departures from the published recipe, with pretrained weights named by what they are, not by their path."""
    others = {place: pair for place, pair in values.items() if place.removeprefix("recipe.") not in STARTING}
    return others if start is None else others | {"recipe.start_from": ("", start.name)}
