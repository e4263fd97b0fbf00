"""ImageNet, 1k or 22k, in the layout that lies on disk: folders, Kaggle's archive, tar shards, or Arrow tables.

    train/<WordNet id>/*.JPEG, val/<WordNet id>/*.JPEG      as torchvision's ImageFolder
    ILSVRC/Data/CLS-LOC/{train/<WordNet id>,val}            Kaggle's, with LOC_val_solution.csv for the flat val
    *train*.tar, *val*.tar                                  WebDataset shards
    train*.parquet, or a folder written by save_to_disk     Hugging Face `datasets`; or hf:ILSVRC/imagenet-1k

In all of them the pictures have the same names and the same order, so that a result does not depend on the layout,
and the number of a class is the rank of its WordNet id among all classes, which is checked. Pictures are read as
torchvision's ImageFolder reads them (see `read_picture`). They are not decoded beforehand: one that is damaged is an
error that names it when it is met, or, with max_unreadable, before.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bench.config.schema import HUB
from bench.data.readers.arrow_tables import SPLITS, ArrowTable, open_table, split_of
from bench.data.readers.class_folders import SOLUTION, class_folders, flat, holds_class_folders
from bench.data.readers.image_files import SUFFIXES, subfolders
from bench.data.readers.index import Index, Indexed, carve, decoded, ordered, readable, some
from bench.data.readers.tar_shards import is_archive_of_archives, sharded, shards_below
from bench.data.readers.wordnet import (
    WORDNET_ID,
    Classes,
    classes_of,
    english_order,
    is_named_by_id,
    not_contradicted,
    picture_id,
    same_classes,
)
from bench.errors import BenchError, unknown

LOCAL_OPTIONS = frozenset({"max_unreadable"})  # how many pictures may be missing, not which there are
KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
IMAGE_COLUMNS = ("image", "img", "jpg", "webp")
LABEL_COLUMNS = ("label", "labels", "cls")
LAYOUTS = (
    f"folders train/<WordNet id>/ and val/<WordNet id>/; Kaggle's {KAGGLE[0]} with {SOLUTION}; tar shards, parquet "
    f"files or a save_to_disk folder with train or val in their names; or {HUB}ILSVRC/imagenet-1k"
)


def open_split(
    split: str,
    root: str | None = None,
    *,
    classes: str = "imagenet1k",
    minival_fraction: float = 0.0,
    max_unreadable: int = 0,
    exif_rotate: bool = False,
) -> Indexed:
    """A split, train or val, found below `root`; or minival, which `minival_fraction` of each class of train makes.

    `classes`: imagenet1k, imagenet22k, or, for a part of them, their WordNet ids with blanks between or a .txt file
    of them. Raises BenchError for a class too few, too many or in the wrong place, for a name twice, for a shard
    that is cut, for labels that are missing. Up to `max_unreadable` pictures are left out, with a warning.
    """
    held = _held_split(split, minival_fraction)
    place = _place(root)
    expected = classes_of(classes, None if root is None or root.startswith(HUB) else Path(place))
    index, lacks = _found(place, held, expected)
    index = ordered(index, f"{place}, {held}")
    if minival_fraction and held == "train":
        index = carve(index, split, minival_fraction)
    left_out: dict[str, str] = {}
    if max_unreadable:
        index, left_out = readable(index, max_unreadable, f"{place}, {split}")
    return Indexed(
        "imagenet",
        split,
        place,
        classes=expected.ids,
        index=index,
        decode=partial(decoded, exif_rotate=exif_rotate),
        unreadable=left_out,
        lacks=lacks,
    )


def _held_split(split: str, minival_fraction: float) -> str:
    """The split on disk that a split is taken from."""
    if split == "minival":
        if not minival_fraction:
            raise BenchError("ImageNet has no split minival; set minival_fraction, such as 0.01, to cut one from train")
        return "train"
    held = SPLITS.get(split, "")
    if held == "test":
        raise BenchError(
            "the test split of ImageNet has no labels that are public, so nothing can be scored or learned on it; "
            "what papers report is measured on val"
        )
    if not held:
        raise unknown("split of ImageNet", split, ["train", "val", "minival"])
    return held


def _place(root: str | None) -> str:
    if not root:
        raise BenchError(f"ImageNet lies nowhere yet: give --data-dir PATH, with {LAYOUTS}")
    if root.startswith(HUB):
        return root
    place = Path(root).expanduser().absolute()
    subfolders(place)  # says why when it is missing, a file, or closed to us
    return str(place)


def _found(place: str, split: str, expected: Classes) -> tuple[Index, list[str]]:
    """The pictures of a split in the first layout that is there, and which of them a table names in vain."""
    if not place.startswith(HUB):
        root = Path(place)
        for below in ("", *KAGGLE):
            for name in _names(split):
                if holds_class_folders(root / below / name):
                    return class_folders(root / below / name, expected), []
                if split == "val" and _is_flat(root / below / name):
                    return _flat(root / below / name, root, expected)
        if split == "train" and holds_class_folders(root):  # as the archive of ImageNet-22k is unpacked
            return class_folders(root, expected), []
        if shards := _shards(root, split):
            return sharded(shards, expected), []
    if table := open_table(place, split):
        return _rows(table, expected), []
    raise _missing(Path(place), split)


def _names(split: str) -> list[str]:
    """The folders that a split may lie in."""
    return [word for word, held in SPLITS.items() if held == split]


def _is_flat(tree: Path) -> bool:
    """Whether pictures lie directly in a folder."""
    return tree.is_dir() and any(path.suffix.lower() in SUFFIXES for path in tree.iterdir())


def _flat(tree: Path, root: Path, expected: Classes) -> tuple[Index, list[str]]:
    """A val without class folders: the table of Kaggle's archive, beside it or above, tells its classes."""
    beside = [root, *root.parents[:3], *[folder for folder in tree.parents if root in folder.parents]]
    table = next((folder / SOLUTION for folder in beside if (folder / SOLUTION).is_file()), None)
    if table is None:
        raise BenchError(
            f"{tree}: the pictures lie in no class folders, and {SOLUTION}, which tells their classes, is missing. "
            f"It is part of Kaggle's archive: put it into {root}; or sort the pictures into {tree.name}/<WordNet id>/"
        )
    return flat(tree, table, expected)


def _shards(root: Path, split: str) -> list[Path]:
    """The tar shards of a split."""
    found = shards_below(root)
    originals = [path.name for path in found if is_archive_of_archives(path)]
    shards = [path for path in found if split_of(str(path.relative_to(root))) == split and path.name not in originals]
    if originals and not shards:
        raise BenchError(
            f"{root}: {some(originals)}: the original archives hold no labelled samples; unpack them to "
            "train/<WordNet id>/ and val/<WordNet id>/, or give WebDataset shards"
        )
    return shards


def _rows(table: ArrowTable, expected: Classes) -> Index:
    """The pictures of a table. Their classes are numbers in the order of the WordNet ids."""
    columns = table.columns()
    image = next((name for name in IMAGE_COLUMNS if name in columns), None)
    label = next((name for name in LABEL_COLUMNS if name in columns), None)
    if image is None or label is None:
        raise BenchError(f"{table.where}: the columns are {some(columns)}; an image and a label are needed")
    _check_classes(table.class_names(label), expected, table.where)
    labels = table.labels(label)
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(expected.ids)):
        odd = int(labels.min() if labels.min() < 0 else labels.max())
        told = "there are rows without a label" if odd == -1 else f"the label {odd} is none"
        raise BenchError(f"{table.where}: {told}; {expected.title} has 0 to {len(expected.ids) - 1}")
    names = table.names(image)
    if all(map(is_named_by_id, names)):
        for name, number in zip(names, labels.tolist(), strict=True):
            not_contradicted(name, number, expected, table.where)
        ids = [picture_id(name) for name in names]
    else:  # names of any other kind need not be unique
        ids = [f"row/{number:08d}" for number in range(len(names))]
    return table.pictures(image, ids, labels)


def _check_classes(names: list[str], expected: Classes, where: str) -> None:
    """BenchError unless the names of a table's classes, where it has any, are the expected ones in their order."""
    if not names:
        return
    if not all(WORDNET_ID.fullmatch(name) for name in names):
        english_order(names, expected, where)
        return
    same_classes(names, expected, where, "name")
    for number, (name, ours) in enumerate(zip(names, expected.ids, strict=True)):
        if name != ours:
            raise BenchError(f"{where}: class {number} is {name}, but in the order of the WordNet ids it is {ours}")


def _missing(root: Path, split: str) -> BenchError:
    for tree in [root / name for name in _names(split) if (root / name).is_dir()]:
        if named := subfolders(tree):
            return BenchError(
                f"{tree}: its folders, {some(named)}, are no classes of ImageNet, which are named by WordNet ids, like "
                "n01440764; for classes of your own take the task folder"
            )
    found = sorted(path.name + "/" * path.is_dir() for path in root.iterdir() if not path.name.startswith("."))
    return BenchError(f"{root}: no {split} of ImageNet; it has {some(found)}. What is read: {LAYOUTS}")
