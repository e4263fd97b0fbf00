"""Parts of a split: some of its images, or those of its labels that may be learnt from. Always the same part."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.config.stage import digest
from bench.errors import BenchError

if TYPE_CHECKING:
    import numpy as np

    from bench.data.manifest import Piece
    from bench.data.source import Sample, Source

NAMED = 5  # names that a message shows
NOWHERE, UNCLEAR = -2, -1  # instead of an image: for a name that none has, and for one that several have
GRAMMAR = re.compile(
    r"(?:(?P<share>\d+(?:\.\d+)?)\s*%|(?P<count>\d+)\s+per\s+class)(?:\s+seed\s+(?P<seed>\d+))?|list:(?P<path>.+)"
)


class Rule(NamedTuple):
    """Which labels may be learnt from: a share of all, so many of each class, or those a file names."""

    share: float = 0.0  # in percent
    each: int = 0
    seed: int = 0
    path: str = ""


class Subset:
    """Some images of a source, in its order. `essence` says which in a word or two, and is hashed."""

    def __init__(self, source: Source, indices: Sequence[int], classes_of: Sequence[int], essence: list[Any]) -> None:
        self._source, self._indices, self._essence = source, indices, essence
        self._classes_of = [classes_of[index] for index in indices]
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
        return self._classes_of

    def label_sets(self) -> np.ndarray:
        """The sets of labels of its images, of a source that has them."""
        sets: np.ndarray = self._source.label_sets()  # type: ignore[attr-defined]
        return sets[list(self._indices)]

    def identity(self) -> str:
        """Hash of what the part holds."""
        return digest([self._essence[0], self._source.identity(), *self._essence[1:]])

    def files(self) -> list[Piece]:
        """The bytes that these images are read from."""
        theirs = getattr(self._source, "files", None)
        if theirs is None:
            return []
        here = {index: number for number, index in enumerate(self._indices)}
        kept = (piece for piece in theirs() if piece.index < 0 or piece.index in here)
        return [piece._replace(index=here.get(piece.index, -1)) for piece in kept]


def labels(source: Source) -> Sequence[int]:
    """The class of every image of a source; sources that cannot tell cheaply are read through."""
    cheap = getattr(source, "labels", None)
    return cheap() if cheap else [source[index]["label"] for index in range(len(source))]


def limited(source: Source, limit: float) -> Subset:
    """A count (> 1) of the images or a share (<= 1) of them, classes represented alike."""
    if limit <= 0:
        raise BenchError(f"limit = {limit:g}: give a count above 1, or a share of the images up to 1")
    wanted = int(limit) if limit > 1 else max(1, round(limit * len(source)))
    classes_of = labels(source)
    return Subset(source, _balanced(source, classes_of, wanted), classes_of, ["subset", float(limit)])


def labelled(source: Source, text: str) -> Subset:
    """The images whose labels may be learnt from, by a rule such as '1%', '5 per class seed 1' or 'list:PATH'.

    A share holds as many images of each class as that allows, and a smaller one of the same seed lies within it.
    Raises BenchError for a rule that cannot be read or met, and for names that the split does not have.
    """
    rule, classes_of = parse_rule(text), labels(source)
    if rule.path:
        indices = _listed(source, Path(rule.path))
        return Subset(source, indices, classes_of, ["labels", "list", [source.name(index) for index in indices]])
    held = Counter(classes_of)
    if rule.each:
        _refuse_few(source, held, rule.each)
    wanted = rule.each * len(held) if rule.each else int(rule.share * len(source) / 100)
    if wanted < len(held):
        raise BenchError(f"labels = {text!r}: {wanted} of {len(source):,} images are fewer than {len(held)} classes")
    essence = ["labels", rule.each or f"{rule.share:g}%", rule.seed]
    return Subset(source, _balanced(source, classes_of, wanted, salt=f"labels {rule.seed}"), classes_of, essence)


def parse_rule(text: str) -> Rule:
    """The rule in a text."""
    found = GRAMMAR.fullmatch(text.strip())
    rule = Rule() if found is None else _rule(found)
    if not (rule.path or rule.each or 0 < rule.share <= 100):
        raise BenchError(f"labels = {text!r}: write '1%', '10% seed 1', '5 per class' or 'list:PATH'")
    return rule


def _rule(found: re.Match[str]) -> Rule:
    return Rule(
        share=float(found["share"] or 0),
        each=int(found["count"] or 0),
        seed=int(found["seed"] or 0),
        path=found["path"] or "",
    )


def _refuse_few(source: Source, held: Counter[int], count: int) -> None:
    few = [f"{source.classes[label]} ({held[label]})" for label in sorted(held) if held[label] < count]
    if few:
        raise BenchError(
            f"labels = '{count} per class': {source.dataset}/{source.split} has fewer images of {_some(few)}"
        )


def _listed(source: Source, path: Path) -> list[int]:
    """Indices of the names in a file, one a line; a name is the image's, with or without folders and suffix."""
    known = _by_name(source)
    wanted = _names_in(path)
    indices = [next((known[word] for word in _spellings(name) if word in known), NOWHERE) for name in wanted]
    times = Counter(indices)
    pairs = list(zip(wanted, indices, strict=True))
    place = f"{source.dataset}/{source.split}"
    wrong = {
        f"not in {place}": [name for name, index in pairs if index == NOWHERE],
        f"the name of several images of {place}; write the folder before it": [n for n, i in pairs if i == UNCLEAR],
        "there twice": [name for name, index in pairs if index >= 0 and times[index] > 1],
    }
    for told, names in wrong.items():
        if names:
            raise BenchError(f"{path}: {len(names):,} of {len(wanted):,} names are {told}: {_some(names)}")
    return sorted(indices)


def _names_in(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.expanduser().read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"labels = 'list:{path}': {getattr(error, 'strerror', None) or error}") from None
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise BenchError(f"{path}: no names in it; write one name of an image on each line")
    return names


def _spellings(name: str) -> tuple[str, str, str]:
    """A name as it is written, without its folders, and without its suffix too."""
    path = PurePosixPath(name)
    return name, path.name, path.stem


def _by_name(source: Source) -> dict[str, int]:
    """Image of each name, full and short; UNCLEAR where a short name stands for several."""
    full = {source.name(index): index for index in range(len(source))}
    short: dict[str, int] = {}
    for name, index in full.items():
        path = PurePosixPath(name)
        for word in {path.name, path.stem}:
            short[word] = UNCLEAR if word in short else index
    return short | full


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def shuffled(names: Sequence[str], salt: str = "") -> list[int]:
    """Positions of the names in an order that is arbitrary, but the same everywhere and for ever."""
    keys = [hashlib.blake2b(name.encode(), digest_size=8, salt=_salt(salt)).digest() for name in names]
    return sorted(range(len(names)), key=keys.__getitem__)


def _salt(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest() if text else b""


def _balanced(source: Source, classes_of: Sequence[int], wanted: int, salt: str = "") -> list[int]:
    """`wanted` indices in ascending order: the first of each class, then the second of each class, and so on."""
    order = shuffled([source.name(index) for index in range(len(source))], salt)
    seen: dict[int, int] = {}
    rounds = []
    for index in order:
        turn = seen.get(classes_of[index], 0)
        seen[classes_of[index]] = turn + 1
        rounds.append((turn, index))
    rounds.sort(key=lambda item: item[0])  # stable: within a round the arbitrary order stays
    return sorted(index for _, index in rounds[:wanted])
