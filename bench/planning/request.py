"""What is asked to be planned: a study, the user's overrides, where data lie; and how the planner may look at them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def _count_classes(request: SplitRequest) -> int:
    return len(splits.open_source(request.whole()).classes)


class DataProbe(NamedTuple):
    """How data and weights are looked at: what a split holds, how many classes it has, what start_from names."""

    describe: Callable[[SplitRequest], Data] = splits.describe
    classes: Callable[[SplitRequest], int] = _count_classes
    start: Callable[[str, Path], Start] = start_from.probe_weights


def _assume_large(request: SplitRequest) -> Data:
    if request.dataset not in datasets.names():
        raise unknown("data set", request.dataset, datasets.names())
    return Data(dataset=request.dataset, split=request.split, identity=splits.NOT_SEEN, images=LARGE)


ASSUME_PUBLISHED = DataProbe(splits.describe_or_assume)  # published splits need not be there: for a study's costs
WITHOUT_DATA = DataProbe(_assume_large, lambda _: 2, start_from.no_probe)  # looks at nothing: to check a study file
