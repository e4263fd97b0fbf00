"""The classes of ImageNet: WordNet ids in order, and whether those on disk are these.

The number of a class is the rank of its WordNet id among all classes (B, D: ImageFolder). A folder too few would
shift all numbers after it, so the classes are compared one by one.
Source of the lists: timm/data/_info, read as files; timm itself is not imported.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from bench.data.readers.index import WORDNET_ID, some
from bench.errors import BenchError, nearest

LISTS = {"imagenet1k": "imagenet_synsets.txt", "imagenet22k": "imagenet22k_synsets.txt"}
TITLES = {"imagenet1k": "ImageNet-1k", "imagenet22k": "ImageNet-22k (Fall 2011)"}
PICTURE = re.compile(r"(n\d{8}_\d+|ILSVRC2012_val_\d{8})(_n\d{8})?")  # the hub adds the class to either name


class Classes(NamedTuple):
    """The classes that the data are to have, in order, and what they are called together."""

    ids: tuple[str, ...]
    title: str

    @property
    def rank(self) -> dict[str, int]:
        """Number of each class."""
        return {name: number for number, name in enumerate(self.ids)}


def classes_of(asked: str, root: Path | None) -> Classes:
    """The classes that the option `classes` names.

    imagenet1k, imagenet22k, WordNet ids with blanks between, or a text file of one id a line, below the data folder
    or absolute.
    """
    if asked in LISTS:
        return Classes(listed(LISTS[asked]), TITLES[asked])
    if asked.endswith(".txt"):
        return _own(_lines((root or Path()) / asked), asked)
    if not WORDNET_ID.search(asked):
        raise BenchError(
            f"classes = {asked!r}: write {', '.join(LISTS)}, WordNet ids with blanks between, or a .txt file of them."
            + nearest(asked, LISTS)
        )
    return _own(asked.replace(",", " ").split(), "classes")


def same_classes(found: Sequence[str], expected: Classes, where: Path | str, what: str = "class folder") -> None:
    """BenchError that names the classes `where` lacks, and those it has too many."""
    missing = sorted(set(expected.ids) - set(found))
    extra = sorted(set(found) - set(expected.ids))
    if not missing and not extra:
        return
    told = []
    if missing:
        told.append(f"it lacks {len(missing):,}: {some([called(name) for name in missing])}")
    if extra:
        told.append(f"no class of it: {some(extra)}")
    if len(missing) == len(extra) == 1:
        told.append(f"was {missing[0]} renamed to {extra[0]}?")
    raise BenchError(
        f"{where}: {expected.title} has {len(expected.ids):,} classes, a {what} each; {'; '.join(told)}. "
        "A part of the classes has to be asked for: in a task file, options = { classes = 'n01440764 n01443537' }"
    )


def called(wordnet_id: str) -> str:
    """'n01440764 (tench)'."""
    name = words().get(wordnet_id, "").partition(",")[0]
    return f"{wordnet_id} ({name})" if name else wordnet_id


@cache
def words() -> dict[str, str]:
    """What the classes are called in English; different classes may have the same name."""
    lines = (line.split("\t") for line in info("imagenet_synset_to_lemma.txt").splitlines())
    return {parts[0]: parts[1].strip() for parts in lines if len(parts) == 2}


def picture_id(path: str) -> str:
    """A picture's name in every layout: ILSVRC2012_val_00000001 or n01440764_10026; others keep their path.

    Neither names the suffix, so that a picture that was encoded anew is still found.
    """
    stem = path.rpartition("/")[2].partition(".")[0]
    if match := PICTURE.fullmatch(stem):
        return match[1]
    return path


def is_named_by_id(name: str) -> bool:
    """Whether a file is named as the pictures of ImageNet are."""
    return PICTURE.fullmatch(name.rpartition("/")[2].partition(".")[0]) is not None


def class_in(name: str) -> str:
    """The WordNet id that the name of a picture tells, at its end as on the hub or at its beginning; or ''."""
    stem = name.rpartition("/")[2].partition(".")[0]
    match = PICTURE.fullmatch(stem)
    if match and match[2]:
        return match[2][1:]
    return stem[:9] if WORDNET_ID.match(stem) and stem[9:10] == "_" else ""


def not_contradicted(name: str, number: int, expected: Classes, where: str) -> None:
    """BenchError when a picture's name tells another class than its label."""
    told = class_in(name)
    if told and told != expected.ids[number]:
        raise BenchError(
            f"{where}: {name} has the label {number}, which is {called(expected.ids[number])}, but its name says "
            f"{called(told)}; the classes are numbered otherwise here"
        )


def english_order(found: Sequence[str], expected: Classes, where: str) -> None:
    """BenchError unless classes given by English names stand in the order of the WordNet ids.

    A name need not be known, but one that belongs to another class stands in the wrong place.
    """
    if len(found) != len(expected.ids):
        raise BenchError(f"{where}: {len(found):,} classes, but {expected.title} has {len(expected.ids):,}")
    theirs = [_plain(words().get(name, "")) for name in expected.ids]
    known = set(theirs)
    wrong = [number for number, name in enumerate(found) if _plain(name) != theirs[number] and _plain(name) in known]
    unknown = sum(_plain(name) not in known for name in found)
    if wrong:
        number = wrong[0]
        raise BenchError(
            f"{where}: class {number} is {found[number]!r}, but in the order of the WordNet ids it is "
            f"{called(expected.ids[number])}; the classes are numbered otherwise here"
        )
    if 2 * unknown > len(found):
        raise BenchError(f"{where}: its classes, {some(found)}, are not those of {expected.title}")


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


def _own(names: Sequence[str], where: str) -> Classes:
    for name in names:
        if not WORDNET_ID.fullmatch(name):
            raise BenchError(f"{where}: {name!r} is no WordNet id, like n01440764")
    if len(set(names)) < len(names):
        raise BenchError(f"{where}: {next(name for name in names if list(names).count(name) > 1)} is there twice")
    return Classes(tuple(sorted(names)), "the list of classes")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{path}: {error}; a list of classes holds one WordNet id a line") from None


@cache
def listed(file: str) -> tuple[str, ...]:
    return tuple(sorted(info(file).split()))


@cache
def info(file: str) -> str:
    """A file of timm's about ImageNet."""
    found = importlib.util.find_spec("timm")
    if found is None or not found.submodule_search_locations:
        raise BenchError("the list of ImageNet's classes is part of the package timm: pip install timm")
    path = Path(found.submodule_search_locations[0]) / "data" / "_info" / file
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}; install timm 1.0.20 or later") from None
