"""Plan requests: a study, the user's overrides, where data are; and how the planner probes data and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from bench.config.precedence import UserOverrides
from bench.config.registry import Places
from bench.config.schema import Study
from bench.config.stage import Data, Start
from bench.data import datasets, splits
from bench.data.splits import SplitRequest
from bench.errors import unknown
from bench.planning import start_from

Role = Literal["pretrain", "train", "val", "minival"]
LARGE = 10**9  # images: no batch and no schedule is too long for such a split


@dataclass(frozen=True, slots=True)
class Request:
    """What to plan, and where its data are."""

    study: Study
    places: Places
    overrides: UserOverrides = field(default_factory=UserOverrides)
    roots: Mapping[str, str] = field(default_factory=dict)  # task -> folder of its data; '': of every task
    unlabelled: str = ""  # a folder of images for pretraining
    max_unreadable: int = 0
    limit: float | None = None  # of every split, as in SplitRequest
    labels: str = ""
    allow_incomplete: bool = False
    output: Path = Path("results")  # where to look for a run that start_from names


def _count_classes(request: SplitRequest) -> int:
    return len(splits.open_source(request.whole()).classes)


class DataProbe(NamedTuple):
    """How the planner looks at data and weights."""

    describe: Callable[[SplitRequest], Data] = splits.describe  # what a split holds
    classes: Callable[[SplitRequest], int] = _count_classes  # of a split
    start: Callable[[str, Path], Start] = start_from.probe_weights  # what start_from names


def _assume_large(request: SplitRequest) -> Data:
    """A split of which only the dataset's name is checked."""
    if request.dataset not in datasets.names():
        raise unknown("data set", request.dataset, datasets.names())
    return Data(dataset=request.dataset, split=request.split, identity=splits.NOT_SEEN, images=LARGE)


ASSUME_PUBLISHED = DataProbe(splits.describe_or_assume)  # for the costs of a study whose data are elsewhere
WITHOUT_DATA = DataProbe(_assume_large, lambda _: 2, start_from.assume_weights)  # to check a study file
