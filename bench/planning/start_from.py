"""Starting from weights from outside: which stages of an arm that spares, and what a plan notes of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.config.overrides import SIZE_INDEPENDENT
from bench.config.schema import StageKind
from bench.config.stage import STARTING, Start

ASKS = {"pretrain": "tokenizer", "supervised": "teacher"}  # the network of its own that a stage learns with


def probe_weights(source: str, output: Path) -> Start:
    """The weights that a `start_from` names. BenchError when there are none, or no network to fetch them."""
    from bench.checkpoints.locate import TIMM, locate

    found = locate(source, output)
    on_hub = bool(found.revision) or source.startswith(TIMM)
    return Start(
        id=source if on_hub else found.path.name,
        digest=found.digest,
        root=str(found.path.absolute()),
        revision=found.revision,
    )


def no_probe(source: str, output: Path) -> Start:
    """For a plan that looks at nothing."""
    return Start(id=source, digest="not looked at")


def kept(kinds: Sequence[StageKind], named: Sequence[bool]) -> list[bool]:
    """Which stages of a chain are still needed when some of them (`named`) start from weights from outside.

    The last kind that does begins the chain, at its first stage; of what stood before, only the tokenizer or the
    teacher that a stage behind it learns with stays.
    """
    if not any(named):
        return [True] * len(kinds)
    last = max(number for number, does in enumerate(named) if does)
    first = next(number for number, does in enumerate(named) if does and kinds[number] == kinds[last])
    asked = {ASKS[kind] for kind in kinds[first:] if kind in ASKS}
    return [number >= first or (kind in SIZE_INDEPENDENT and kind in asked) for number, kind in enumerate(kinds)]


def starts_here(source: str, before: Mapping[str, str]) -> bool:
    """Whether a stage takes the weights that its values name: not when an earlier stage of the arm did, or learned."""
    return bool(source) and not any(role not in SIZE_INDEPENDENT for role in before)


def departures(found: Mapping[str, tuple[Any, Any]], start: Start | None) -> dict[str, tuple[Any, Any]]:
    """What departs from the published recipe, the weights from outside by what they are and not where they lie."""
    others = {place: pair for place, pair in found.items() if place.removeprefix("recipe.") not in STARTING}
    return others if start is None else others | {"recipe.start_from": ("", start.name)}
