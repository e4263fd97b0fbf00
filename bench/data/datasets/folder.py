"""Pictures in folders: train/<class>/*, val/<class>/*, and any tree of pictures without labels.

Files are read as torchvision's ImageFolder reads them (see `read_picture`); in particular the rotation that a
camera notes in the EXIF data is not applied, unless the option exif_rotate is on.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from os.path import isdir
from pathlib import Path
from typing import NamedTuple

from bench.data.manifest import Piece
from bench.data.readers.image_files import File, list_pictures, read_picture, subfolders, unreadable
from bench.data.source import Sample
from bench.data.subsets import shuffled
from bench.errors import BenchError, nearest

LOCAL_OPTIONS = frozenset({"path", "max_unreadable"})  # say where pictures lie, not which they are
NAMED = 10  # unreadable files that a message names

log = logging.getLogger(__name__)


class Item(NamedTuple):
    """A picture file and its class; -1 when there is none."""

    file: File
    label: int


class Listing(NamedTuple):
    """What was found: the folder, the classes in order, the pictures."""

    tree: Path
    classes: tuple[str, ...]
    items: list[Item]
    unreadable: dict[str, str] = {}  # noqa: RUF012 - path -> why, of files that were left out


class Pictures:
    """One split: the pictures below a folder, and which class each belongs to."""

    dataset = "folder"

    def __init__(self, split: str, root: Path, listing: Listing, *, exif_rotate: bool = False) -> None:
        self.split, self.root = split, str(root)
        self._tree, self.classes, self._items, self.unreadable = listing
        self._exif_rotate = exif_rotate

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        """{"image": RGB picture, "label": class, or -1 without labels}."""
        file, label = self._items[index]
        try:
            return {"image": read_picture(self._tree / file.path, self._exif_rotate), "label": label}
        except Exception as error:  # whatever the decoder raises, the file's name is what helps
            raise BenchError(f"{self._tree / file.path} was readable when it was listed, but now: {error}") from error

    def name(self, index: int) -> str:
        """Path of a picture below the split's folder."""
        return self._items[index].file.path

    def labels(self) -> Sequence[int]:
        """The class of every picture."""
        return [label for _, label in self._items]

    def files(self) -> list[Piece]:
        """Every picture's file."""
        tree = f"{self._tree}/"
        return [
            Piece(file.path, tree + file.path, file.size, file.changed, index=index)
            for index, (file, _) in enumerate(self._items)
        ]

    def identity(self) -> str:
        """Hash of the listing: the classes, and path, size and class of every picture."""
        listing = hashlib.blake2b("\0".join(self.classes).encode(), digest_size=12)
        for file, label in self._items:
            listing.update(f"\n{file.path}\0{file.size}\0{label}".encode())
        return listing.hexdigest()


def open_split(
    split: str,
    root: str | None = None,
    *,
    path: str = "",
    minival_fraction: float = 0.0,
    max_unreadable: int = 0,
    exif_rotate: bool = False,
) -> Pictures:
    """A split below `root`, or `unlabelled`: pictures without labels, at any depth, below `path` or else `root`.

    `unlabelled` is the folder of that name; where there is none, the pictures of `train`; and in a folder that
    has neither, all pictures there are. `path` matters to no other split.
    `minival_fraction` of each class of `train` is held out as the split `minival` when there is no folder minival.
    Raises BenchError when pictures or classes are missing, when the classes differ from those of train, or when
    more than `max_unreadable` files cannot be read; up to that number they are left out, with a warning.
    """
    if not 0 <= minival_fraction < 1:
        raise BenchError(f"minival_fraction = {minival_fraction:g}: give a share of train, from 0 to below 1")
    place = _folder(path if path and split == "unlabelled" else root)
    if split == "unlabelled":
        listing = _unlabelled(place, minival_fraction)
    elif split in ("train", "minival") and minival_fraction and not isdir(place / "minival"):
        listing = _carved(place, split, minival_fraction)
    else:
        listing = _labelled(place, split)
    return Pictures(split, place, _readable(listing, max_unreadable), exif_rotate=exif_rotate)


def _folder(path: str | None) -> Path:
    if not path:
        raise BenchError("the data set folder lies nowhere yet: give --data-dir PATH, a folder with train/ and val/")
    place = Path(path).expanduser().absolute()
    subfolders(place)  # says why when it is missing, a file, or closed to us
    return place


def _unlabelled(place: Path, minival_fraction: float) -> Listing:
    """Pictures without their labels."""
    tree = next((place / name for name in ("unlabelled", "train") if isdir(place / name)), place)
    if tree.name == "train" and minival_fraction and not isdir(place / "minival"):
        items = _carved(place, "train", minival_fraction).items
    else:
        items = [Item(file, -1) for file in list_pictures(tree)]
    if not items:
        raise BenchError(f"{tree}: no pictures in it, at any depth")
    return Listing(tree, (), [Item(file, -1) for file, _ in items])


def _labelled(place: Path, split: str) -> Listing:
    """The pictures of root/split with their classes, which must be those of root/train."""
    tree = place / split
    if not isdir(tree):
        hint = " or set minival_fraction, such as 0.1" if split == "minival" else ""
        raise BenchError(
            f"{place} has no folder {split}; it has {_some(subfolders(place))}. Make {split}/<class>/{hint}"
        )
    classes = _class_names(tree)
    if split != "train":
        _same_classes(place, split, classes)
    files = [list_pictures(tree / name, below=name) for name in classes]
    _none_empty(tree, classes, {label for label, found in enumerate(files) if found})
    return Listing(tree, classes, [Item(file, label) for label, found in enumerate(files) for file in found])


def _class_names(tree: Path) -> tuple[str, ...]:
    names = tuple(subfolders(tree))
    if not names:
        raise BenchError(
            f"{tree} has no class folders; expected {tree.name}/<class>/*.jpg. "
            "Pictures without labels can only be learnt from in pretraining: --unlabelled PATH"
        )
    return names


def _same_classes(place: Path, split: str, classes: tuple[str, ...]) -> None:
    trained = _class_names(_folder(str(place / "train")))
    for name in sorted(set(classes) - set(trained)):
        raise BenchError(f"{place / split / name}: train has no class {name!r}.{nearest(name, trained)}")
    for name in sorted(set(trained) - set(classes)):
        raise BenchError(f"{place / split} lacks the class {name!r}, which train has.{nearest(name, classes)}")


def _none_empty(tree: Path, classes: tuple[str, ...], filled: set[int]) -> None:
    empty = [name for label, name in enumerate(classes) if label not in filled]
    if empty:
        raise BenchError(f"{tree}: no readable pictures in the class folder {_some(empty)}; fill it or remove it")


def _carved(place: Path, split: str, fraction: float) -> Listing:
    """train without its held-out share, or that share: the same pictures every time, of each class alike."""
    tree, classes, items, _ = _labelled(place, "train")
    of_class: list[list[str]] = [[] for _ in classes]
    for item in items:
        of_class[item.label].append(item.file.path)
    held: set[str] = set()
    for name, paths in zip(classes, of_class, strict=True):
        count = max(1, round(fraction * len(paths)))
        if count >= len(paths):
            raise BenchError(f"{tree / name}: {len(paths)} picture(s) are too few to hold {count} out for minival")
        held |= {paths[i] for i in shuffled(paths)[:count]}
    kept = [item for item in items if (item.file.path in held) == (split == "minival")]
    return Listing(tree, classes, kept)


def _readable(listing: Listing, max_unreadable: int) -> Listing:
    """The listing without the files that cannot be read, if those are not too many."""
    tree, classes, items, _ = listing
    bad = unreadable(tree, [item.file for item in items])
    if not bad:
        return listing
    named = _some([f"{path} ({why})" for path, why in bad.items()])
    if len(bad) > max_unreadable:
        raise BenchError(
            f"{tree}: {len(bad)} of {len(items)} pictures cannot be read: {named}. "
            f"Remove them, or leave them out with --max-unreadable {len(bad)}"
        )
    log.warning("%s: %d of %d pictures cannot be read and are left out: %s", tree, len(bad), len(items), named)
    kept = [item for item in items if item.file.path not in bad]
    if classes:
        _none_empty(tree, classes, {item.label for item in kept})
    elif not kept:
        raise BenchError(f"{tree}: no readable pictures in it")
    return Listing(tree, classes, kept, bad)


def _some(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (", ".join(names[:NAMED]) or "none") + more
