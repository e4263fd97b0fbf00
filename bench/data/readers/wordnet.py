"""The classes of ImageNet: WordNet ids in order, and checks that the data have exactly these.

The number of a class is the rank of its WordNet id among all classes (B, D: ImageFolder). A missing folder would
shift all numbers after it, so the classes are compared one by one.
Source of the lists: timm/data/_info, read as files; timm itself is not imported.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.data.readers.index import WORDNET_ID
from bench.errors import BenchError, listed_up_to, nearest

LISTS = {"imagenet1k": "imagenet_synsets.txt", "imagenet22k": "imagenet22k_synsets.txt"}
TITLES = {"imagenet1k": "ImageNet-1k", "imagenet22k": "ImageNet-22k (Fall 2011)"}
IMAGE_NAME = re.compile(r"(n\d{8}_\d+|ILSVRC2012_val_\d{8})(_n\d{8})?")  # the hub adds the class to either name


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes that the data must have, in order, and what they are called together."""

    ids: tuple[str, ...]
    title: str

    @property
    def rank(self) -> dict[str, int]:
        """Number of each class."""
        return {name: number for number, name in enumerate(self.ids)}


def read_classes(option: str, root: Path | None) -> Classes:
    """The classes that the option `classes` gives.

    imagenet1k, imagenet22k, WordNet ids separated by blanks, or a text file with one id a line, its path absolute or
    below the data folder.
    """
    if option in LISTS:
        return Classes(class_list(LISTS[option]), TITLES[option])
    if option.endswith(".txt"):
        return _custom_classes(_read_words((root or Path()) / option), option)
    if not WORDNET_ID.search(option):
        raise BenchError(
            f"classes = {option!r}: write {', '.join(LISTS)}, WordNet ids with blanks between, or a .txt file of them."
            + nearest(option, LISTS)
        )
    return _custom_classes(option.replace(",", " ").split(), "classes")


def check_classes(ids: Sequence[str], expected: Classes, where: Path | str, what: str = "class folder") -> None:
    """Raise BenchError that names the missing and the unexpected classes of `where`."""
    missing = sorted(set(expected.ids) - set(ids))
    extra = sorted(set(ids) - set(expected.ids))
    if not missing and not extra:
        return
    mistakes = []
    if missing:
        mistakes.append(f"it lacks {len(missing):,}: {listed_up_to([class_title(name) for name in missing])}")
    if extra:
        mistakes.append(f"no class of it: {listed_up_to(extra)}")
    if len(missing) == len(extra) == 1:
        mistakes.append(f"was {missing[0]} renamed to {extra[0]}?")
    raise BenchError(
        f"{where}: {expected.title} has {len(expected.ids):,} classes, a {what} each; {'; '.join(mistakes)}. "
        "To use only some of the classes, write in a task file: options = { classes = 'n01440764 n01443537' }"
    )


def class_title(wordnet_id: str) -> str:
    """'n01440764 (tench)'."""
    name = english_names().get(wordnet_id, "").partition(",")[0]
    return f"{wordnet_id} ({name})" if name else wordnet_id


@cache
def english_names() -> dict[str, str]:
    """WordNet id -> English names; different classes may have the same name."""
    lines = (line.split("\t") for line in timm_info("imagenet_synset_to_lemma.txt").splitlines())
    return {parts[0]: parts[1].strip() for parts in lines if len(parts) == 2}


def image_id(path: str) -> str:
    """The name of an image in every layout: ILSVRC2012_val_00000001 or n01440764_10026; any other keeps its path.

    Without the suffix, so that a re-encoded image has the same name.
    """
    stem = path.rpartition("/")[2].partition(".")[0]
    if match := IMAGE_NAME.fullmatch(stem):
        return match[1]
    return path


def has_imagenet_name(name: str) -> bool:
    """Whether a file is named like the images of ImageNet."""
    return IMAGE_NAME.fullmatch(name.rpartition("/")[2].partition(".")[0]) is not None


def class_in_name(name: str) -> str:
    """The WordNet id in an image's name, at its end as on the hub or at its beginning; '' if there is none."""
    stem = name.rpartition("/")[2].partition(".")[0]
    match = IMAGE_NAME.fullmatch(stem)
    if match and match[2]:
        return match[2][1:]
    return stem[:9] if WORDNET_ID.match(stem) and stem[9:10] == "_" else ""


def check_label(name: str, number: int, expected: Classes, where: str) -> None:
    """Raise BenchError when an image's name tells another class than its label."""
    named_class = class_in_name(name)
    if named_class and named_class != expected.ids[number]:
        raise BenchError(
            f"{where}: {name} has the label {number}, which is {class_title(expected.ids[number])}, but its name says "
            f"{class_title(named_class)}; the classes are numbered otherwise here"
        )


def check_english_order(names: Sequence[str], expected: Classes, where: str) -> None:
    """Raise BenchError unless classes given by English names are in the order of their WordNet ids.

    A name need not be one of WordNet's; but if it belongs to another class, the order is wrong.
    """
    if len(names) != len(expected.ids):
        raise BenchError(f"{where}: {len(names):,} classes, but {expected.title} has {len(expected.ids):,}")
    ordered = [_plain(english_names().get(wordnet_id, "")) for wordnet_id in expected.ids]
    known = set(ordered)
    wrong = [number for number, name in enumerate(names) if _plain(name) != ordered[number] and _plain(name) in known]
    unknown = sum(_plain(name) not in known for name in names)
    if wrong:
        number = wrong[0]
        raise BenchError(
            f"{where}: class {number} is {names[number]!r}, but in the order of the WordNet ids it is "
            f"{class_title(expected.ids[number])}; the classes are numbered otherwise here"
        )
    if 2 * unknown > len(names):
        raise BenchError(f"{where}: its classes, {listed_up_to(names)}, are not those of {expected.title}")


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


def _custom_classes(names: Sequence[str], where: str) -> Classes:
    for name in names:
        if not WORDNET_ID.fullmatch(name):
            raise BenchError(f"{where}: {name!r} is not a WordNet id, like n01440764")
    if len(set(names)) < len(names):
        raise BenchError(f"{where}: {next(name for name in names if list(names).count(name) > 1)} occurs twice")
    return Classes(tuple(sorted(names)), "the list of classes")


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{path}: {error}; a list of classes holds one WordNet id a line") from None


@cache
def class_list(file: str) -> tuple[str, ...]:
    """The WordNet ids of a file of timm's, in order."""
    return tuple(sorted(timm_info(file).split()))


@cache
def timm_info(file: str) -> str:
    """The text of a file in timm/data/_info."""
    spec = importlib.util.find_spec("timm")  # finds the folder without importing timm, and with it torch
    if spec is None or not spec.submodule_search_locations:
        raise BenchError("the list of ImageNet's classes is part of the package timm: pip install timm")
    path = Path(spec.submodule_search_locations[0]) / "data" / "_info" / file
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}; install timm 1.0.20 or later") from None
