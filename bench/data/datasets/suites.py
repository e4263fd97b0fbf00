"""ImageNet's other test sets, for models of its 1000 classes: V2, ReaL, A, R and Sketch. They are only scored on.

An image's label is the rank of its class among the sorted WordNet ids of ImageNet-1k, in every suite:
imagenet-v2      folders 0 to 999, which are these ranks (sorted as text, as torchvision does, 10 would follow 1)
imagenet-sketch  a folder for each of the 1000 WordNet ids
imagenet-a, -r   folders for 200 of them; only these may be answered, as `among` says
imagenet-real    the images of ImageNet's val with every label that people found in them; those without are left out
Source of the lists: timm/data/_info. Of the rules: T results/README.md, and each suite's paper.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from bench.config.stage import digest
from bench.data.datasets import imagenet
from bench.data.readers.class_folders import class_folders, holds_class_folders
from bench.data.readers.image_files import list_pictures, subfolders
from bench.data.readers.index import Index, Indexed, ordered, readable, some, whole_files
from bench.data.readers.wordnet import LISTS, Classes, info, listed
from bench.data.source import Sample, Source
from bench.data.subsets import Subset
from bench.errors import BenchError, unknown

LOCAL_OPTIONS = frozenset({"max_unreadable", "label_sets"})  # where a file lies; `identity` covers what it says
FOLDERS = {  # what the archives unpack to
    "imagenet-v2": ("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency"),
    "imagenet-sketch": ("sketch", "imagenet-sketch"),
    "imagenet-a": ("imagenet-a",),
    "imagenet-r": ("imagenet-r",),
}
PARTS = {"imagenet-a": "imagenet_a_synsets.txt", "imagenet-r": "imagenet_r_synsets.txt"}  # suites of 200 classes
REAL = "imagenet-real"
REAL_LABELS = "imagenet_real_labels.json"
NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")
OTHER_V2 = ("threshold-0.7", "threshold0.7", "top-images", "topimages")  # of V2's three sets matched-frequency is meant


def open_split(
    split: str, root: str | None = None, *, suite: str, label_sets: str = "", max_unreadable: int = 0
) -> Source:
    """The suite, of which there is one split, val, in the folder that its archive unpacks to or the one above.

    For imagenet-real `root` is where ImageNet-1k lies, and label_sets may name a file other than timm's.
    Raises BenchError for a folder of a class too few or too many, and for another suite's folder.
    """
    known = [*FOLDERS, REAL]
    if suite not in known:
        raise unknown("suite", suite, known)
    if split != "val":
        raise BenchError(f"{suite} has no split {split!r}; it is only scored on: val")
    if suite == REAL:
        return _relabelled(root, label_sets, max_unreadable)
    if not root:
        raise BenchError(f"{suite} lies nowhere yet: give --data-dir {suite}=PATH, the folder that holds its classes")
    tree = _tree(Path(root).expanduser().absolute(), suite)
    index = ordered(_numbered(tree) if suite == "imagenet-v2" else _named(tree, suite), str(tree))
    left_out: dict[str, str] = {}
    if max_unreadable:
        index, left_out = readable(index, max_unreadable, str(tree))
    return Suite(suite, tree, index, left_out)


class Suite(Indexed):
    """A suite of its own pictures. `among`: the classes that may be answered."""

    def __init__(self, suite: str, tree: Path, index: Index, unreadable: dict[str, str]) -> None:
        super().__init__("suites", "val", str(tree), classes=synsets(), index=index, unreadable=unreadable)
        self.among = ranks(suite)


class Relabelled(Subset):
    """ImageNet's val with sets of labels. The label of an image is the first of its set."""

    def __init__(self, source: Source, indices: Sequence[int], sets: np.ndarray) -> None:
        first = np.full(len(source), -1)
        first[np.asarray(indices)] = sets[:, 0]
        super().__init__(source, indices, first.tolist(), [REAL, digest(sets.tolist())])
        self._sets = sets

    def __getitem__(self, index: int) -> Sample:
        return {**super().__getitem__(index), "label": self._classes_of[index]}

    def label_sets(self) -> np.ndarray:
        """(N, most labels of an image) int64, -1 behind the last."""
        return self._sets


def synsets() -> tuple[str, ...]:
    """The 1000 classes of ImageNet-1k, in order."""
    return listed(LISTS["imagenet1k"])


@cache
def ranks(suite: str) -> tuple[int, ...]:
    """The numbers, among the 1000, of the classes that a suite has."""
    numbers = {name: number for number, name in enumerate(synsets())}
    return tuple(numbers[name] for name in _ids(suite))


def _ids(suite: str) -> tuple[str, ...]:
    return tuple(sorted(info(PARTS[suite]).split())) if suite in PARTS else synsets()


def _tree(root: Path, suite: str) -> Path:
    """The folder that holds the folders of classes."""
    if suite == "imagenet-v2" and any(word in str(root) for word in OTHER_V2):
        raise BenchError(f"{root}: of ImageNet-V2's three sets this is another; scores are of matched-frequency")
    holds = _holds_numbers if suite == "imagenet-v2" else holds_class_folders
    for tree in (root, *(root / name for name in FOLDERS[suite])):
        if holds(tree):
            return tree
    wanted = "0 to 999" if suite == "imagenet-v2" else "WordNet ids, like n01443537"
    raise BenchError(f"{root}: no {suite}; it should hold folders called {wanted}, and has {some(subfolders(root))}")


def _holds_numbers(tree: Path) -> bool:
    return tree.is_dir() and any(name.isdigit() for name in subfolders(tree))


def _named(tree: Path, suite: str) -> Index:
    """The pictures of folders called by WordNet ids, which must be all those of the suite."""
    index = class_folders(tree, Classes(_ids(suite), suite))
    return index._replace(labels=np.array(ranks(suite), np.int32)[index.labels])


def _numbered(tree: Path) -> Index:
    """The pictures of folders called by the numbers of classes, which must be all of them."""
    wanted, found = {str(number) for number in range(len(synsets()))}, set(subfolders(tree))
    if wanted != found:
        told = [f"lacks the class folders {some(sorted(wanted - found, key=int))}"] if wanted - found else []
        told += [f"has {some(sorted(found - wanted))}, which are none"] if found - wanted else []
        raise BenchError(f"{tree} {' and '.join(told)}; ImageNet-V2 has folders called 0 to {len(wanted) - 1}")
    files = [file for number in range(len(wanted)) for file in list_pictures(tree / str(number), below=str(number))]
    return whole_files(
        [file.path for file in files],
        [int(file.path.partition("/")[0]) for file in files],
        [f"{tree}/{file.path}" for file in files],
        [file.size for file in files],
        [file.changed for file in files],
    )


def _relabelled(root: str | None, path: str, max_unreadable: int) -> Relabelled:
    """ImageNet's val under the label sets, which stand in the order of the images' numbers, from 1."""
    val = imagenet.open_split("val", root, max_unreadable=max_unreadable)
    sets = _label_sets(path)
    numbers = [_number(val.name(index), len(sets), val.root) for index in range(len(val))]
    kept = [index for index, number in enumerate(numbers) if sets[number - 1]]
    longest = max((len(sets[numbers[index] - 1]) for index in kept), default=1)
    table = np.full((len(kept), longest), -1)
    for row, index in enumerate(kept):
        labels = sets[numbers[index] - 1]
        table[row, : len(labels)] = labels
    return Relabelled(val, kept, table)


def _number(name: str, images: int, root: str | None) -> int:
    found = NUMBER.search(name)
    number = int(found[1]) if found else 0
    if not 0 < number <= images:
        raise BenchError(
            f"{root}: the picture {name!r} has no number of ImageNet's val, like ILSVRC2012_val_00000001, so which "
            "labels ReaL gives it is unknown; a copy that keeps the names is needed"
        )
    return number


def _label_sets(path: str) -> list[list[int]]:
    """A list of labels for each image of val; BenchError when the file is not of this form."""
    try:
        sets = json.loads(Path(path).expanduser().read_text() if path else info(REAL_LABELS))
    except (OSError, ValueError) as error:
        raise BenchError(f"label_sets = {path}: {error}") from None
    classes = len(synsets())
    if not isinstance(sets, list) or not all(isinstance(labels, list) for labels in sets):
        raise BenchError(f"label_sets = {path}: a list of lists of labels is needed, one for each image of val")
    for number, labels in enumerate(sets, 1):
        wrong = [label for label in labels if not (isinstance(label, int) and 0 <= label < classes)]
        if wrong:
            told = f"image {number} has the label {wrong[0]!r}; there are 0 to {classes - 1}"
            raise BenchError(f"label_sets = {path}: {told}")
    return sets
