"""What is asked to be planned: a study, the user's overrides, where data lie; and how the planner may look at them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from bench.config.precedence import UserOverrides
from bench.config.registry import Places
from bench.config.schema import Scalar, Study
from bench.config.stage import Data, Start
from bench.data import splits
from bench.planning import start_from

Role = Literal["pretrain", "train", "val", "minival"]


class Request(NamedTuple):
    """What is to be planned, and where its data lie. `roots`: task -> folder, '' for every task."""

    study: Study
    places: Places
    overrides: UserOverrides = UserOverrides()
    roots: Mapping[str, str] = {}
    unlabelled: str = ""
    max_unreadable: int = 0
    limit: float | None = None
    labels: str = ""
    allow_incomplete: bool = False
    output: Path = Path("results")  # where a run is looked for that start_from names


def _count_classes(dataset: str, split: str, root: str | None, options: Mapping[str, Scalar]) -> int:
    return len(splits.open_source(dataset, split, root=root, options=options).classes)


class DataProbe(NamedTuple):
    """How data and weights are looked at: what a split holds, how many classes it has, what start_from names."""

    describe: Callable[..., Data] = splits.describe
    classes: Callable[..., int] = _count_classes
    start: Callable[[str, Path], Start] = start_from.probe_weights


PUBLISHED_SPLITS = DataProbe(splits.foreseen)  # for the cost of a study whose data are elsewhere
