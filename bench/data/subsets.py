"""Subsets of a split: a number or share of its images or of its labels. The same rule always gives the same subset."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.config.stage import digest
from bench.errors import BenchError, listed_up_to

if TYPE_CHECKING:
    import numpy as np

    from bench.data.manifest import Piece
    from bench.data.source import Sample, Source

MOST_NAMES = 5  # in a message
NOWHERE, UNCLEAR = -2, -1  # instead of an image's number: no image has the name; several images have it
GRAMMAR = re.compile(
    r"(?:(?P<share>\d+(?:\.\d+)?)\s*%|(?P<count>\d+)\s+per\s+class)(?:\s+seed\s+(?P<seed>\d+))?|list:(?P<path>.+)"
)


class Rule(NamedTuple):
    """Which labels are used for training: a share of all, a count for each class, or those a file names."""

    share: float = 0.0  # in percent
    per_class: int = 0
    seed: int = 0
    path: str = ""


class Subset:
    """Some images of a source, in its order.

    all_labels: the class of every image of the source. rule: how the images were chosen, hashed into the identity.
    """

    def __init__(self, source: Source, indices: Sequence[int], all_labels: Sequence[int], rule: list[Any]) -> None:
        self._source, self._indices, self._rule = source, indices, rule
        self._labels = [all_labels[index] for index in indices]
        self.dataset, self.split, self.classes = source.dataset, source.split, source.classes
        self.root: str | None = getattr(source, "root", None)
        if hasattr(source, "among"):
            self.among: Sequence[int] = source.among

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._source[self._indices[index]]

    def name(self, index: int) -> str:
        """Identifier of an image, as in the whole split."""
        return self._source.name(self._indices[index])

    def labels(self) -> Sequence[int]:
        """The class of every image."""
        return self._labels

    def label_sets(self) -> np.ndarray:
        """The label sets of its images, for a source that has them."""
        sets: np.ndarray = self._source.label_sets()  # type: ignore[attr-defined]
        return sets[list(self._indices)]

    def identity(self) -> str:
        """Hash of what the subset holds."""
        return digest([self._rule[0], self._source.identity(), *self._rule[1:]])

    def files(self) -> list[Piece]:
        """The bytes that these images are read from. Files of many images stay, since any may be needed."""
        all_files = getattr(self._source, "files", None)
        if all_files is None:
            return []
        numbers = {index: number for number, index in enumerate(self._indices)}
        pieces = (piece for piece in all_files() if piece.image < 0 or piece.image in numbers)
        return [piece._replace(image=numbers.get(piece.image, -1)) for piece in pieces]


def labels(source: Source) -> Sequence[int]:
    """The class of every image of a source. Without a method `labels`, every image is read for it."""
    listed = getattr(source, "labels", None)
    return listed() if listed else [source[index]["label"] for index in range(len(source))]


def limited_subset(source: Source, limit: float) -> Subset:
    """A count (> 1) of the images or a share (<= 1) of them, with the classes in balance."""
    if limit <= 0:
        raise BenchError(f"limit = {limit:g}: give a count above 1, or a share of the images up to 1")
    count = int(limit) if limit > 1 else max(1, round(limit * len(source)))
    all_labels = labels(source)
    return Subset(source, _balanced_indices(source, all_labels, count), all_labels, ["subset", float(limit)])


def labelled_subset(source: Source, text: str) -> Subset:
    """The images whose labels are used, by a rule such as '1%', '5 per class seed 1' or 'list:PATH'.

    A share is balanced over the classes as far as it can be, and contains every smaller share of the same seed.
    Raises BenchError for a rule that cannot be read or met, and for names that the split does not have.
    """
    rule, all_labels = parse_rule(text), labels(source)
    if rule.path:
        indices = _indices_from_file(source, Path(rule.path))
        return Subset(source, indices, all_labels, ["labels", "list", [source.name(index) for index in indices]])
    images_of = Counter(all_labels)
    if rule.per_class:
        _check_per_class(source, images_of, rule.per_class)
    # rounded down: 1 % of ImageNet's 1,281,167 are the usual 12,811
    count = rule.per_class * len(images_of) if rule.per_class else int(rule.share * len(source) / 100)
    if count < len(images_of):
        raise BenchError(
            f"labels = {text!r}: {count} of {len(source):,} images are fewer than {len(images_of)} classes"
        )
    indices = _balanced_indices(source, all_labels, count, salt=f"labels {rule.seed}")
    return Subset(source, indices, all_labels, ["labels", rule.per_class or f"{rule.share:g}%", rule.seed])


def parse_rule(text: str) -> Rule:
    """Parse a rule; BenchError when it has none of the known forms."""
    match = GRAMMAR.fullmatch(text.strip())
    rule = Rule() if match is None else _rule(match)
    if not (rule.path or rule.per_class or 0 < rule.share <= 100):
        raise BenchError(f"labels = {text!r}: write '1%', '10% seed 1', '5 per class' or 'list:PATH'")
    return rule


def _rule(match: re.Match[str]) -> Rule:
    return Rule(
        share=float(match["share"] or 0),
        per_class=int(match["count"] or 0),
        seed=int(match["seed"] or 0),
        path=match["path"] or "",
    )


def _check_per_class(source: Source, images_of: Counter[int], count: int) -> None:
    few = [f"{source.classes[label]} ({images})" for label, images in sorted(images_of.items()) if images < count]
    if few:
        place = f"{source.dataset}/{source.split}"
        raise BenchError(f"labels = '{count} per class': {place} has fewer images of {listed_up_to(few, MOST_NAMES)}")


def _indices_from_file(source: Source, path: Path) -> list[int]:
    """Images that a file names, one a line; a name may be written with or without its folders and suffix."""
    index_of = _index_by_name(source)
    names = _names_in(path)
    indices = [next((index_of[form] for form in _spellings(name) if form in index_of), NOWHERE) for name in names]
    times = Counter(indices)
    pairs = list(zip(names, indices, strict=True))
    place = f"{source.dataset}/{source.split}"
    mistakes = {
        f"not in {place}": [name for name, index in pairs if index == NOWHERE],
        f"the name of several images of {place}; write the folder before it": [n for n, i in pairs if i == UNCLEAR],
        "duplicates": [name for name, index in pairs if index >= 0 and times[index] > 1],
    }
    for mistake, wrong in mistakes.items():
        if wrong:
            listed = listed_up_to(wrong, MOST_NAMES)
            raise BenchError(f"{path}: {len(wrong):,} of {len(names):,} names are {mistake}: {listed}")
    return sorted(indices)


def _names_in(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.expanduser().read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"labels = 'list:{path}': {getattr(error, 'strerror', None) or error}") from None
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise BenchError(f"{path}: no names in it; write the name of one image on each line")
    return names


def _spellings(name: str) -> tuple[str, str, str]:
    """A name as it is written, without its folders, and without its suffix too."""
    path = PurePosixPath(name)
    return name, path.name, path.stem


def _index_by_name(source: Source) -> dict[str, int]:
    """The image of each name, full and short; UNCLEAR for a short name that several images have."""
    full = {source.name(index): index for index in range(len(source))}
    short: dict[str, int] = {}
    for name, index in full.items():
        path = PurePosixPath(name)
        for form in {path.name, path.stem}:
            short[form] = UNCLEAR if form in short else index
    return short | full  # a full name is unique, whatever short name it equals


def shuffled_positions(names: Sequence[str], salt: str = "") -> list[int]:
    """Positions of the names in an arbitrary order that is the same on every machine and for ever."""
    # by hash and not by a random generator: adding or removing an image does not reorder the others
    keys = [hashlib.blake2b(name.encode(), digest_size=8, salt=_salt(salt)).digest() for name in names]
    return sorted(range(len(names)), key=keys.__getitem__)


def _salt(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest() if text else b""


def _balanced_indices(source: Source, all_labels: Sequence[int], count: int, salt: str = "") -> list[int]:
    """`count` indices, ascending: in shuffled order the first of each class, then the second of each, and so on."""
    order = shuffled_positions([source.name(index) for index in range(len(source))], salt)
    images_of: Counter[int] = Counter()
    rounds = []
    for index in order:
        label = all_labels[index]
        rounds.append((images_of[label], index))
        images_of[label] += 1
    rounds.sort(key=lambda item: item[0])  # stable: within a round the shuffled order stays
    return sorted(index for _, index in rounds[:count])
