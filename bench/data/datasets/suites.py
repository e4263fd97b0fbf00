"""ImageNet's other test sets, for models of its 1000 classes: V2, ReaL, A, R and Sketch. For evaluation only.

An image's label is the rank of its class among the sorted WordNet ids of ImageNet-1k, in every suite:
imagenet-v2      folders 0 to 999, which are these ranks (sorted as text, as torchvision does, 10 would follow 1)
imagenet-sketch  a folder for each of the 1000 WordNet ids
imagenet-a, -r   folders for 200 of them; only these may be predicted (`among`)
imagenet-real    the images of ImageNet's val with every label that annotators gave them; those without are left out
Source of the lists: timm/data/_info. Of the rules: T results/README.md, and each suite's paper.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from bench.config.stage import digest
from bench.data.datasets import imagenet
from bench.data.readers.class_folders import class_folders, has_class_folders
from bench.data.readers.image_files import list_images, subfolders
from bench.data.readers.index import Index, IndexedSplit, drop_unreadable, index_of_files, sort_by_class
from bench.data.readers.wordnet import LISTS, Classes, class_list, timm_info
from bench.data.source import Sample, Source
from bench.data.subsets import Subset
from bench.errors import BenchError, listed_up_to, unknown

LOCAL_OPTIONS = frozenset({"max_unreadable", "label_sets"})  # where a file lies; `identity` covers what it says
FOLDERS = {  # what the archives unpack to
    "imagenet-v2": ("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency"),
    "imagenet-sketch": ("sketch", "imagenet-sketch"),
    "imagenet-a": ("imagenet-a",),
    "imagenet-r": ("imagenet-r",),
}
SUBSETS = {"imagenet-a": "imagenet_a_synsets.txt", "imagenet-r": "imagenet_r_synsets.txt"}  # suites of 200 classes
REAL = "imagenet-real"
REAL_LABELS = "imagenet_real_labels.json"
NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")
OTHER_V2 = (
    "threshold-0.7",
    "threshold0.7",
    "top-images",
    "topimages",
)  # V2 has three sets; scores are of matched-frequency


def open_split(
    split: str, root: str | None = None, *, suite: str, label_sets: str = "", max_unreadable: int = 0
) -> Source:
    """Open a suite, in the folder that its archive unpacks to or the one above. Its only split is val.

    For imagenet-real `root` is that of ImageNet-1k, and `label_sets` may name a file to use instead of timm's.
    Raises BenchError for class folders that are missing or too many, and for the folder of another suite.
    """
    suites = [*FOLDERS, REAL]
    if suite not in suites:
        raise unknown("suite", suite, suites)
    if split != "val":
        raise BenchError(f"{suite} has no split {split!r}; it is for evaluation only and has val")
    if suite == REAL:
        return _relabel(root, label_sets, max_unreadable)
    if not root:
        raise BenchError(
            f"the folder of {suite} is not known: give --data-dir {suite}=PATH, the folder that holds its classes"
        )
    tree = _tree(Path(root).expanduser().absolute(), suite)
    index = sort_by_class(_index_v2(tree) if suite == "imagenet-v2" else _index_named(tree, suite), str(tree))
    left_out: dict[str, str] = {}
    if max_unreadable:
        index, left_out = drop_unreadable(index, max_unreadable, str(tree))
    return Suite(suite, tree, index, left_out)


class Suite(IndexedSplit):
    """A suite with images of its own. among: the classes that may be predicted."""

    def __init__(self, suite: str, tree: Path, index: Index, unreadable: dict[str, str]) -> None:
        super().__init__("suites", "val", str(tree), classes=synsets(), index=index, unreadable=unreadable)
        self.among = ranks(suite)


class Relabelled(Subset):
    """ImageNet's val with label sets. The label of an image is the first of its set."""

    def __init__(self, source: Source, indices: Sequence[int], sets: np.ndarray) -> None:
        first = np.full(len(source), -1)
        first[np.asarray(indices)] = sets[:, 0]
        super().__init__(source, indices, first.tolist(), [REAL, digest(sets.tolist())])
        self._sets = sets

    def __getitem__(self, index: int) -> Sample:
        return {**super().__getitem__(index), "label": self._labels[index]}

    def label_sets(self) -> np.ndarray:
        """(N, most labels of an image) int64, padded with -1."""
        return self._sets


def synsets() -> tuple[str, ...]:
    """The 1000 classes of ImageNet-1k, in order."""
    return class_list(LISTS["imagenet1k"])


@cache
def ranks(suite: str) -> tuple[int, ...]:
    """The numbers, of the 1000, of the classes that a suite has."""
    numbers = {name: number for number, name in enumerate(synsets())}
    return tuple(numbers[name] for name in _ids(suite))


def _ids(suite: str) -> tuple[str, ...]:
    return tuple(sorted(timm_info(SUBSETS[suite]).split())) if suite in SUBSETS else synsets()


def _tree(root: Path, suite: str) -> Path:
    """The folder that has the class folders."""
    if suite == "imagenet-v2" and any(word in str(root) for word in OTHER_V2):
        raise BenchError(f"{root}: this is another of ImageNet-V2's three sets; scores are of matched-frequency")
    is_suite = _has_numbered_folders if suite == "imagenet-v2" else has_class_folders
    for tree in (root, *(root / name for name in FOLDERS[suite])):
        if is_suite(tree):
            return tree
    folders = "0 to 999" if suite == "imagenet-v2" else "WordNet ids, like n01443537"
    raise BenchError(
        f"{root}: no {suite}; it should have folders called {folders}, and has {listed_up_to(subfolders(root))}"
    )


def _has_numbered_folders(tree: Path) -> bool:
    return tree.is_dir() and any(name.isdigit() for name in subfolders(tree))


def _index_named(tree: Path, suite: str) -> Index:
    """The images of folders named by WordNet ids, which must be exactly those of the suite."""
    index = class_folders(tree, Classes(_ids(suite), suite))
    return replace(index, labels=np.array(ranks(suite), np.int32)[index.labels])


def _index_v2(tree: Path) -> Index:
    """The images of folders named by class numbers, which must be exactly 0 to 999."""
    classes = len(synsets())
    numbers, folders = {str(number) for number in range(classes)}, set(subfolders(tree))
    missing, extra = sorted(numbers - folders, key=int), sorted(folders - numbers)
    if missing or extra:
        mistakes = [f"lacks the class folders {listed_up_to(missing)}"] if missing else []
        mistakes += [f"has {listed_up_to(extra)}, which are none"] if extra else []
        raise BenchError(f"{tree} {' and '.join(mistakes)}; ImageNet-V2 has folders called 0 to {classes - 1}")
    files = [file for number in range(classes) for file in list_images(tree / str(number), below=str(number))]
    return index_of_files(
        [file.path for file in files],
        [int(file.path.partition("/")[0]) for file in files],
        [f"{tree}/{file.path}" for file in files],
        [file.size for file in files],
        [file.changed for file in files],
    )


def _relabel(root: str | None, path: str, max_unreadable: int) -> Relabelled:
    """ImageNet's val with the label sets, which are in the order of the numbers in its image names, from 1."""
    val = imagenet.open_split("val", root, max_unreadable=max_unreadable)
    sets = _read_label_sets(path)
    sets_of_val = [sets[_number(val.name(index), len(sets), val.root) - 1] for index in range(len(val))]
    labelled = [index for index, labels in enumerate(sets_of_val) if labels]
    longest = max((len(sets_of_val[index]) for index in labelled), default=1)
    table = np.full((len(labelled), longest), -1)
    for row, index in enumerate(labelled):
        labels = sets_of_val[index]
        table[row, : len(labels)] = labels
    return Relabelled(val, labelled, table)


def _number(name: str, images: int, root: str | None) -> int:
    match = NUMBER.search(name)
    number = int(match[1]) if match else 0
    if not 0 < number <= images:
        raise BenchError(
            f"{root}: the image {name!r} has no number of ImageNet's val, like ILSVRC2012_val_00000001, so its labels "
            "in ReaL are unknown; a copy with the original names is needed"
        )
    return number


def _read_label_sets(path: str) -> list[list[int]]:
    """A list of labels for each image of val; BenchError when the file is not of this form."""
    try:
        sets = json.loads(Path(path).expanduser().read_text() if path else timm_info(REAL_LABELS))
    except (OSError, ValueError) as error:
        raise BenchError(f"label_sets = {path}: {error}") from None
    classes = len(synsets())
    if not isinstance(sets, list) or not all(isinstance(labels, list) for labels in sets):
        raise BenchError(f"label_sets = {path}: a list of lists of labels is needed, one for each image of val")
    for number, labels in enumerate(sets, 1):
        wrong = [label for label in labels if not (isinstance(label, int) and 0 <= label < classes)]
        if wrong:
            mistake = f"image {number} has the label {wrong[0]!r}; there are 0 to {classes - 1}"
            raise BenchError(f"label_sets = {path}: {mistake}")
    return sets
