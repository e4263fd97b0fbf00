"""ImageNet, 1k or 22k, in whatever layout is on disk: folders, Kaggle's archive, tar shards, or Arrow tables.

    train/<WordNet id>/*.JPEG, val/<WordNet id>/*.JPEG      as torchvision's ImageFolder
    ILSVRC/Data/CLS-LOC/{train/<WordNet id>,val}            Kaggle's, with LOC_val_solution.csv for the flat val
    *train*.tar, *val*.tar                                  WebDataset shards
    train*.parquet, or a folder written by save_to_disk     Hugging Face `datasets`; or hf:ILSVRC/imagenet-1k

In all of them the images have the same names and the same order, so that a result does not depend on the layout, and
the number of a class is the rank of its WordNet id among all classes, which is checked. Images are read as by
torchvision's ImageFolder (see `read_image`). They are not decoded beforehand: a damaged one is an error that names it
when it is read, or, with max_unreadable, before.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bench.config.schema import HUB
from bench.data.readers.arrow_tables import SPLITS, ArrowTable, open_table, split_of
from bench.data.readers.class_folders import SOLUTION, class_folders, flat_folder, has_class_folders
from bench.data.readers.image_files import SUFFIXES, subfolders
from bench.data.readers.index import Index, IndexedSplit, decode_image, drop_unreadable, hold_out, sort_by_class
from bench.data.readers.tar_shards import find_shards, index_shards, is_original_archive
from bench.data.readers.wordnet import (
    WORDNET_ID,
    Classes,
    check_classes,
    check_english_order,
    check_label,
    has_imagenet_name,
    image_id,
    read_classes,
)
from bench.errors import BenchError, listed_up_to, unknown

LOCAL_OPTIONS = frozenset({"max_unreadable"})  # how many images may be missing, not which there are
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
) -> IndexedSplit:
    """Open train or val below `root`, or minival, the share `minival_fraction` of each class of train.

    classes: imagenet1k, imagenet22k, or, for a part of them, their WordNet ids separated by blanks or a .txt file of
    them. Raises BenchError for classes that are missing, too many or in the wrong place, for a name that is there
    twice, for a truncated shard, for missing labels. Up to `max_unreadable` images are left out, with a warning.
    """
    disk_split = _disk_split(split, minival_fraction)
    place = _place(root)
    expected = read_classes(classes, None if root is None or root.startswith(HUB) else Path(place))
    index, lacks = _find_index(place, disk_split, expected)
    index = sort_by_class(index, f"{place}, {disk_split}")
    if minival_fraction and disk_split == "train":
        index = hold_out(index, split, minival_fraction)
    left_out: dict[str, str] = {}
    if max_unreadable:
        index, left_out = drop_unreadable(index, max_unreadable, f"{place}, {split}")
    return IndexedSplit(
        "imagenet",
        split,
        place,
        classes=expected.ids,
        index=index,
        decode=partial(decode_image, exif_rotate=exif_rotate),
        unreadable=left_out,
        lacks=lacks,
    )


def _disk_split(split: str, minival_fraction: float) -> str:
    """The split on disk from which a split is taken."""
    if split == "minival":
        if not minival_fraction:
            raise BenchError("ImageNet has no split minival; set minival_fraction, such as 0.01, to cut one from train")
        return "train"
    disk_split = SPLITS.get(split, "")
    if disk_split == "test":
        raise BenchError(
            "the labels of ImageNet's test split are not public, so nothing can be scored or learned on it; "
            "what papers report is measured on val"
        )
    if not disk_split:
        raise unknown("split of ImageNet", split, ["train", "val", "minival"])
    return disk_split


def _place(root: str | None) -> str:
    if not root:
        raise BenchError(f"the folder of ImageNet is not known: give --data-dir PATH, with {LAYOUTS}")
    if root.startswith(HUB):
        return root
    place = Path(root).expanduser().absolute()
    subfolders(place)  # says why when it is missing, a file, or closed to us
    return str(place)


def _find_index(place: str, split: str, expected: Classes) -> tuple[Index, list[str]]:
    """The images of a split in the first layout that is there, and what that layout's own list has beyond them."""
    if not place.startswith(HUB):
        root = Path(place)
        for below in ("", *KAGGLE):
            for name in _folder_names(split):
                if has_class_folders(root / below / name):
                    return class_folders(root / below / name, expected), []
                if split == "val" and _is_flat(root / below / name):
                    return _read_flat(root / below / name, root, expected)
        if split == "train" and has_class_folders(root):  # the archive of ImageNet-22k has no folder train
            return class_folders(root, expected), []
        if shards := _find_shards(root, split):
            return index_shards(shards, expected), []
    if table := open_table(place, split):
        return _read_table(table, expected), []
    raise _missing(Path(place), split)


def _folder_names(split: str) -> list[str]:
    """The names that the folder of a split may have."""
    return [name for name, split_of_name in SPLITS.items() if split_of_name == split]


def _is_flat(tree: Path) -> bool:
    """Whether a folder holds images directly."""
    return tree.is_dir() and any(path.suffix.lower() in SUFFIXES for path in tree.iterdir())


def _read_flat(tree: Path, root: Path, expected: Classes) -> tuple[Index, list[str]]:
    """A val without class folders; its classes are in the table of Kaggle's archive, beside it or above."""
    beside = [root, *root.parents[:3], *[folder for folder in tree.parents if root in folder.parents]]
    table = next((folder / SOLUTION for folder in beside if (folder / SOLUTION).is_file()), None)
    if table is None:
        raise BenchError(
            f"{tree}: the images are not in class folders, and {SOLUTION}, which has their classes, is missing. "
            f"It is part of Kaggle's archive: put it into {root}; or sort the images into {tree.name}/<WordNet id>/"
        )
    return flat_folder(tree, table, expected)


def _find_shards(root: Path, split: str) -> list[Path]:
    """The tar shards of a split."""
    paths = find_shards(root)
    originals = [path.name for path in paths if is_original_archive(path)]
    shards = [path for path in paths if split_of(str(path.relative_to(root))) == split and path.name not in originals]
    if originals and not shards:
        raise BenchError(
            f"{root}: {listed_up_to(originals)}: the original archives hold no labelled samples; unpack them to "
            "train/<WordNet id>/ and val/<WordNet id>/, or give WebDataset shards"
        )
    return shards


def _read_table(table: ArrowTable, expected: Classes) -> Index:
    """The images of a table, whose labels must be numbers in the order of the WordNet ids."""
    columns = table.columns()
    image = next((name for name in IMAGE_COLUMNS if name in columns), None)
    label = next((name for name in LABEL_COLUMNS if name in columns), None)
    if image is None or label is None:
        raise BenchError(f"{table.where}: the columns are {listed_up_to(columns)}; an image and a label are needed")
    _check_classes(table.class_names(label), expected, table.where)
    labels = table.labels(label)
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(expected.ids)):
        wrong = int(labels.min() if labels.min() < 0 else labels.max())
        mistake = "there are rows without a label" if wrong == -1 else f"there is no label {wrong}"
        raise BenchError(f"{table.where}: {mistake}; {expected.title} has 0 to {len(expected.ids) - 1}")
    names = table.names(image)
    if all(map(has_imagenet_name, names)):
        for name, number in zip(names, labels.tolist(), strict=True):
            check_label(name, number, expected, table.where)
        ids = [image_id(name) for name in names]
    else:  # other names need not be unique, or are missing
        ids = [f"row/{number:08d}" for number in range(len(names))]
    return table.image_index(image, ids, labels)


def _check_classes(names: list[str], expected: Classes, where: str) -> None:
    """Raise BenchError unless a table's class names, if it has any, are the expected ones in their order."""
    if not names:
        return
    if not all(WORDNET_ID.fullmatch(name) for name in names):
        check_english_order(names, expected, where)
        return
    check_classes(names, expected, where, "name")
    for number, (name, wordnet_id) in enumerate(zip(names, expected.ids, strict=True)):
        if name != wordnet_id:
            raise BenchError(
                f"{where}: class {number} is {name}, but in the order of the WordNet ids it is {wordnet_id}"
            )


def _missing(root: Path, split: str) -> BenchError:
    for tree in [root / name for name in _folder_names(split) if (root / name).is_dir()]:
        if names := subfolders(tree):
            return BenchError(
                f"{tree}: its folders, {listed_up_to(names)}, are not classes of ImageNet, which are named by WordNet "
                "ids, like n01440764; for classes of your own take the task folder"
            )
    entries = sorted(path.name + "/" * path.is_dir() for path in root.iterdir() if not path.name.startswith("."))
    return BenchError(f"{root}: no {split} of ImageNet; it has {listed_up_to(entries)}. What is read: {LAYOUTS}")
