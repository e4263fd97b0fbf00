"""Images in folders: train/<class>/*, val/<class>/*, and any tree of images without labels.

Files are read as torchvision's ImageFolder reads them (see `read_image`): the EXIF rotation is applied only with the
option exif_rotate.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os.path import isdir
from pathlib import Path
from typing import NamedTuple

from bench.data.manifest import Piece
from bench.data.readers.image_files import File, find_unreadable, list_images, read_image, subfolders
from bench.data.source import Sample
from bench.data.subsets import shuffled_positions
from bench.errors import BenchError, listed_up_to, nearest

LOCAL_OPTIONS = frozenset({"path", "max_unreadable"})  # where images lie, not which they are

log = logging.getLogger(__name__)


class Item(NamedTuple):
    """An image file and its class; -1 when there is none."""

    file: File
    label: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The images of a split: their folder, the classes in order, the files."""

    tree: Path
    classes: tuple[str, ...]
    items: list[Item]
    unreadable: dict[str, str] = field(default_factory=dict)  # path -> reason, of files that were left out


class FolderSplit:
    """One split: the images below a folder, each with its class."""

    dataset = "folder"

    def __init__(self, split: str, root: Path, listing: Listing, *, exif_rotate: bool = False) -> None:
        self.split, self.root = split, str(root)
        self._tree, self.classes = listing.tree, listing.classes
        self._items, self.unreadable = listing.items, listing.unreadable
        self._exif_rotate = exif_rotate

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        """{"image": RGB, "label": class, or -1 without labels}."""
        file, label = self._items[index]
        try:
            return {"image": read_image(self._tree / file.path, self._exif_rotate), "label": label}
        except Exception as error:  # a decoder may raise anything; the file's name is what helps
            raise BenchError(f"{self._tree / file.path} was readable when it was listed, but now: {error}") from error

    def name(self, index: int) -> str:
        """Path of an image below the split's folder."""
        return self._items[index].file.path

    def labels(self) -> Sequence[int]:
        """The class of every image."""
        return [label for _, label in self._items]

    def files(self) -> list[Piece]:
        """The files of all images."""
        tree = f"{self._tree}/"
        return [
            Piece(file.path, tree + file.path, file.size, file.changed, image=index)
            for index, (file, _) in enumerate(self._items)
        ]

    def identity(self) -> str:
        """Hash of the classes, and of path, size and class of every image."""
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
) -> FolderSplit:
    """Open a split below `root`, or `unlabelled`: images without labels, at any depth, below `path` or else `root`.

    `unlabelled` is the folder of that name; without one, the images of `train`; without either, all images of the
    folder. `path` is used for no other split.
    If there is no folder minival, `minival_fraction` of each class of `train` is held out as the split `minival`.
    Raises BenchError when images or classes are missing, when the classes differ from those of train, or when
    more than `max_unreadable` files cannot be read; up to that number they are left out, with a warning.
    """
    if not 0 <= minival_fraction < 1:
        raise BenchError(f"minival_fraction = {minival_fraction:g}: give a share of train, from 0 to below 1")
    place = _folder(path if path and split == "unlabelled" else root)
    if split == "unlabelled":
        listing = _list_unlabelled(place, minival_fraction)
    elif split in ("train", "minival") and minival_fraction and not isdir(place / "minival"):
        listing = _list_held_out(place, split, minival_fraction)
    else:
        listing = _list_labelled(place, split)
    return FolderSplit(split, place, _drop_unreadable(listing, max_unreadable), exif_rotate=exif_rotate)


def _folder(path: str | None) -> Path:
    if not path:
        raise BenchError("the folder of the data is not known: give --data-dir PATH, a folder with train/ and val/")
    place = Path(path).expanduser().absolute()
    subfolders(place)  # says why when it is missing, a file, or closed to us
    return place


def _list_unlabelled(place: Path, minival_fraction: float) -> Listing:
    """Images without their labels; those that minival holds out of train are not among them."""
    tree = next((place / name for name in ("unlabelled", "train") if isdir(place / name)), place)
    if tree.name == "train" and minival_fraction and not isdir(place / "minival"):
        items = _list_held_out(place, "train", minival_fraction).items
    else:
        items = [Item(file, -1) for file in list_images(tree)]
    if not items:
        raise BenchError(f"{tree}: no images in it, at any depth")
    return Listing(tree, (), [Item(item.file, -1) for item in items])


def _list_labelled(place: Path, split: str) -> Listing:
    """The images of root/split with their classes, which must be those of root/train."""
    tree = place / split
    if not isdir(tree):
        hint = " or set minival_fraction, such as 0.1" if split == "minival" else ""
        raise BenchError(
            f"{place} has no folder {split}; it has {listed_up_to(subfolders(place))}. Make {split}/<class>/{hint}"
        )
    classes = _class_names(tree)
    if split != "train":
        _check_classes(place, split, classes)
    files = [list_images(tree / name, below=name) for name in classes]
    _refuse_empty(tree, classes, {label for label, files_of_class in enumerate(files) if files_of_class})
    items = [Item(file, label) for label, files_of_class in enumerate(files) for file in files_of_class]
    return Listing(tree, classes, items)


def _class_names(tree: Path) -> tuple[str, ...]:
    names = tuple(subfolders(tree))
    if not names:
        raise BenchError(
            f"{tree} has no class folders; expected {tree.name}/<class>/*.jpg. "
            "Images without labels are for pretraining only: --unlabelled PATH"
        )
    return names


def _check_classes(place: Path, split: str, classes: tuple[str, ...]) -> None:
    of_train = _class_names(_folder(str(place / "train")))
    for name in sorted(set(classes) - set(of_train)):
        raise BenchError(f"{place / split / name}: train has no class {name!r}.{nearest(name, of_train)}")
    for name in sorted(set(of_train) - set(classes)):
        raise BenchError(f"{place / split} lacks the class {name!r}, which train has.{nearest(name, classes)}")


def _refuse_empty(tree: Path, classes: tuple[str, ...], filled: set[int]) -> None:
    empty = [name for label, name in enumerate(classes) if label not in filled]
    if empty:
        raise BenchError(f"{tree}: no readable images in the class folder {listed_up_to(empty)}; fill it or remove it")


def _list_held_out(place: Path, split: str, fraction: float) -> Listing:
    """train without the held-out share of each class, or, for minival, that share: the same images every time."""
    listing = _list_labelled(place, "train")
    paths_of: list[list[str]] = [[] for _ in listing.classes]
    for item in listing.items:
        paths_of[item.label].append(item.file.path)
    held_out: set[str] = set()
    for name, paths in zip(listing.classes, paths_of, strict=True):
        count = max(1, round(fraction * len(paths)))
        if count >= len(paths):
            folder = listing.tree / name
            raise BenchError(f"{folder}: {len(paths)} image(s) are too few to hold {count} out for minival")
        held_out |= {paths[i] for i in shuffled_positions(paths)[:count]}
    items = [item for item in listing.items if (item.file.path in held_out) == (split == "minival")]
    return replace(listing, items=items)


def _drop_unreadable(listing: Listing, max_unreadable: int) -> Listing:
    """The listing without the files that cannot be read; BenchError for more than `max_unreadable`."""
    tree, items = listing.tree, listing.items
    bad = find_unreadable(tree, [item.file for item in items])
    if not bad:
        return listing
    names = listed_up_to([f"{path} ({why})" for path, why in bad.items()])
    if len(bad) > max_unreadable:
        raise BenchError(
            f"{tree}: {len(bad)} of {len(items)} images cannot be read: {names}. "
            f"Remove them, or leave them out with --max-unreadable {len(bad)}"
        )
    log.warning("%s: %d of %d images cannot be read and are left out: %s", tree, len(bad), len(items), names)
    good = [item for item in items if item.file.path not in bad]
    if listing.classes:
        _refuse_empty(tree, listing.classes, {item.label for item in good})
    elif not good:
        raise BenchError(f"{tree}: no readable images in it")
    return replace(listing, items=good, unreadable=bad)
