"""CIFAR-10 and CIFAR-100: the binary version, parquet files, a save_to_disk folder, or a folder per class.

    cifar-100-binary/{train.bin,test.bin}              a record: coarse label, fine label, 3 x 32 x 32 bytes
    cifar-10-batches-bin/{data_batch_1..5,test_batch}.bin       a record: label, 3 x 32 x 32 bytes
    *train*.parquet, *test*.parquet                    columns img and fine_label, or label
    train/<class>/*.png, test/<class>/*.png            classes in the order of their names

Source: https://www.cs.toronto.edu/~kriz/cifar.html. The Python version is made of pickles, which can run any code
when they are read; it is refused. `val` is what CIFAR calls its test split.
In all layouts but folders an image is named by its number in the split.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from bench.config.schema import HUB
from bench.data.datasets import folder
from bench.data.readers.arrow_tables import SPLITS, ArrowTable, open_table
from bench.data.readers.image_files import subfolders
from bench.data.readers.index import Index, IndexedSplit, drop_unreadable, hold_out
from bench.data.source import Source
from bench.errors import BenchError, listed_up_to, unknown

LOCAL_OPTIONS = frozenset({"max_unreadable"})
SIDE = 32
PIXELS = 3 * SIDE * SIDE
IMAGE_COLUMNS = ("img", "image")
PICKLES = ("cifar-100-python", "cifar-10-batches-py")


class Binary(NamedTuple):
    """The binary version of CIFAR-10 or CIFAR-100."""

    folder: str
    files: dict[str, tuple[str, ...]]  # of each split
    labels: int  # bytes before the pixels of a record; the last one is the label
    names: str  # file of the class names
    archive: str


BINARY = {
    100: Binary(
        folder="cifar-100-binary",
        files={"train": ("train.bin",), "val": ("test.bin",)},
        labels=2,
        names="fine_label_names.txt",
        archive="cifar-100-binary",
    ),
    10: Binary(
        folder="cifar-10-batches-bin",
        files={"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "val": ("test_batch.bin",)},
        labels=1,
        names="batches.meta.txt",
        archive="cifar-10-binary",
    ),
}
LABEL_COLUMNS = {100: ("fine_label", "label"), 10: ("label",)}


def open_split(
    split: str,
    root: str | None = None,
    *,
    classes: int = 100,
    minival_fraction: float = 0.0,
    max_unreadable: int = 0,
) -> Source:
    """Open train or val below `root`, or minival, the share `minival_fraction` of each class of train.

    classes: 100 or 10, the fine labels of CIFAR-100 or CIFAR-10. Raises BenchError for pickles, for a file that is
    not a whole number of records, and for a label out of range.
    """
    if classes not in BINARY:
        raise BenchError(f"classes = {classes}: CIFAR has 10 or 100")
    if not root:
        raise BenchError(
            f"the folder of CIFAR-{classes} is not known: give --data-dir PATH, or --data-dir cifar{classes}=PATH "
            f"beside that of another task, with {BINARY[classes].folder}/ in it"
        )
    disk_split = _disk_split(split, minival_fraction)
    place = root if root.startswith(HUB) else str(Path(root).expanduser().absolute())
    if not place.startswith(HUB):
        subfolders(Path(place))  # says why when it is missing, a file, or closed to us
        if home := _folders(Path(place), disk_split):
            return _open_folders(home, split, classes, minival_fraction, max_unreadable)
        if records := _records(Path(place), disk_split, classes):
            return _split(split, place, records, minival_fraction, max_unreadable)
    if table := open_table(place, disk_split) or (open_table(place, "test") if disk_split == "val" else None):
        return _split(split, place, _read_table(table, classes), minival_fraction, max_unreadable)
    raise _missing(Path(place), disk_split, classes)


class _SplitOnDisk(NamedTuple):
    """A split as stored on disk."""

    images: Index
    names: tuple[str, ...]  # of the classes
    raw: bool  # an image is its pixels, not an encoded file


def _disk_split(split: str, minival_fraction: float) -> str:
    """The split on disk from which a split is taken."""
    if split == "minival":
        if not minival_fraction:
            raise BenchError("CIFAR has no split minival; set minival_fraction, such as 0.1, to cut one from train")
        return "train"
    if split not in SPLITS:
        raise unknown("split of CIFAR", split, ["train", "val", "minival"])
    return "train" if SPLITS[split] == "train" else "val"


def _split(split: str, place: str, disk: _SplitOnDisk, minival_fraction: float, max_unreadable: int) -> IndexedSplit:
    index = disk.images
    left_out: dict[str, str] = {}
    if minival_fraction and split in ("train", "minival"):
        index = hold_out(index, split, minival_fraction)
    if max_unreadable and not disk.raw:
        index, left_out = drop_unreadable(index, max_unreadable, f"{place}, {split}")
    decode = decode_record if disk.raw else None
    return IndexedSplit("cifar", split, place, classes=disk.names, index=index, decode=decode, unreadable=left_out)


def decode_record(record: bytes) -> Image.Image:
    """The image of a record: 1024 bytes of red, then of green, then of blue, row by row."""
    planes = np.frombuffer(record, np.uint8).reshape(3, SIDE, SIDE)
    return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))


def _records(root: Path, split: str, classes: int) -> _SplitOnDisk | None:
    """The images of the binary version; None if none of its files is there."""
    kind = BINARY[classes]
    home = root / kind.folder if (root / kind.folder).is_dir() else root
    files = [home / name for name in kind.files[split]]
    missing = [path.name for path in files if not path.is_file()]
    if len(missing) == len(files):
        return None
    if missing:
        raise BenchError(f"{home} lacks {listed_up_to(missing)} of CIFAR-{classes}; unpack {kind.archive}.tar.gz again")
    labels = np.concatenate([_labels(path, kind.labels, classes) for path in files])
    counts = [path.stat().st_size // (kind.labels + PIXELS) for path in files]
    starts = np.concatenate([np.arange(count) for count in counts]) * (kind.labels + PIXELS)
    index = Index(
        ids=np.array([f"{split}/{number:05d}".encode() for number in range(len(labels))], "S"),
        labels=labels.astype(np.int32),
        files=np.repeat(np.arange(len(files), dtype=np.int32), counts),
        offsets=starts + kind.labels,
        sizes=np.full(len(labels), PIXELS, np.int64),
        paths=np.array([str(path).encode() for path in files], "S"),
        changed=np.array([path.stat().st_mtime_ns for path in files], np.int64),
    )
    return _SplitOnDisk(index, _names(home / kind.names, classes), raw=True)


def _labels(path: Path, width: int, classes: int) -> np.ndarray:
    """The labels of a file of records, of CIFAR-100 the fine ones: (records,) uint8."""
    size, record = path.stat().st_size, width + PIXELS
    if not size or size % record:
        raise BenchError(
            f"{path} has {size:,} bytes, which is not a whole number of records of {record:,}: it is truncated, or "
            f"not of CIFAR-{classes}; download {BINARY[classes].archive}.tar.gz again"
        )
    labels = np.memmap(path, np.uint8, "r").reshape(-1, record)[:, width - 1]
    return _check_range(np.array(labels), classes, str(path))


def _check_range(labels: np.ndarray, classes: int, where: str) -> np.ndarray:
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise BenchError(
            f"{where}: image {wrong[0]} has the label {labels[wrong[0]]}; CIFAR-{classes} has 0 to {classes - 1}"
        )
    return labels


def _names(path: Path, classes: int) -> tuple[str, ...]:
    """The names of the classes, or their numbers if there is no list of names."""
    names = path.read_text(encoding="utf-8").split() if path.is_file() else []
    return tuple(names) if len(names) == classes else tuple(map(str, range(classes)))


def _read_table(table: ArrowTable, classes: int) -> _SplitOnDisk:
    """The images of a table."""
    columns = table.columns()
    image = next((name for name in IMAGE_COLUMNS if name in columns), None)
    label = next((name for name in LABEL_COLUMNS[classes] if name in columns), None)
    if image is None or label is None:
        expected = f"img and {LABEL_COLUMNS[classes][0]}"
        raise BenchError(f"{table.where}: the columns are {listed_up_to(columns)}; CIFAR-{classes} has {expected}")
    names = table.class_names(label)
    if names and len(names) != classes:
        raise BenchError(f"{table.where}: {len(names)} classes in {label}, but CIFAR-{classes} has {classes}")
    labels = _check_range(table.labels(label), classes, table.where)
    split = "train" if table.where.endswith("train") else "val"
    ids = [f"{split}/{number:05d}" for number in range(len(labels))]
    return _SplitOnDisk(
        table.image_index(image, ids, labels), tuple(names) or tuple(map(str, range(classes))), raw=False
    )


def _folders(root: Path, split: str) -> tuple[Path, str] | None:
    """The root and the name of the folder of a split, if it has class folders."""
    for name in ("train",) if split == "train" else ("val", "test"):
        if (root / name).is_dir() and subfolders(root / name):
            return root, name
    return None


def _open_folders(
    home: tuple[Path, str], split: str, classes: int, minival_fraction: float, max_unreadable: int
) -> folder.FolderSplit:
    """The images of class folders; BenchError unless there are as many as CIFAR has classes."""
    root, name = home
    options = {"minival_fraction": minival_fraction, "max_unreadable": max_unreadable}
    opened = folder.open_split("minival" if split == "minival" else name, str(root), **options)  # type: ignore[arg-type]
    if len(opened.classes) != classes:
        raise BenchError(
            f"{root / name} has {len(opened.classes)} class folders, but CIFAR-{classes} has {classes}; for data of "
            "another kind take the task folder"
        )
    opened.dataset, opened.split = "cifar", split  # it would say folder, and test
    return opened


def _missing(root: Path, split: str, classes: int) -> BenchError:
    kind = BINARY[classes]
    address = f"https://www.cs.toronto.edu/~kriz/{kind.archive}.tar.gz"
    pickles = [name for name in PICKLES if (root / name).is_dir() or root.name == name]
    if pickles or (root / "meta").is_file() or (root / "batches.meta").is_file():
        return BenchError(
            f"{root}: this is CIFAR's version for Python ({listed_up_to(pickles or ['meta'])}), which is made of "
            "pickles. Reading a pickle can run any code, so it is not read here. Get the binary version: "
            f"{address}, unpacked to {kind.folder}/"
        )
    other = BINARY[110 - classes]  # 10 for 100, and 100 for 10
    if (root / other.folder).is_dir() or root.name == other.folder:
        return BenchError(f"{root} holds CIFAR-{110 - classes}, but the task needs CIFAR-{classes}")
    return BenchError(
        f"{root}: no {split} of CIFAR-{classes}. What is read: {kind.folder}/ ({address}), parquet files or a "
        "save_to_disk folder with train or test in their names, {train,test}/<class>/, or hf:uoft-cs/cifar"
        + str(classes)
    )
