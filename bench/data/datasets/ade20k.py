"""ADE20K scene parsing, the 150-class benchmark: images, each with a label map.

    ADEChallengeData2016/{images,annotations}/{training,validation}/ADE_{train,val}_00000001.{jpg,png}
    *train*.parquet, *validation*.parquet         columns image and annotation, as scene_parse_150 of the hub

On disk, label 0 is no class and 1 to 150 are the classes. This file alone renumbers them: 255, which is ignored, and
0 to 149 (mmsegmentation: reduce_zero_label). A map is never resized here.
Source: https://github.com/CSAILVision/sceneparsing and mmsegmentation's ADE20KDataset.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from bench.config.schema import HUB
from bench.data.manifest import Piece
from bench.data.readers.arrow_tables import SPLITS, ArrowTable, open_table
from bench.data.readers.image_files import File, list_images, subfolders
from bench.data.readers.index import (
    Index,
    content_hash,
    decode_image,
    drop_unreadable,
    index_of_files,
    pieces,
    shuffled_order,
)
from bench.data.source import Sample
from bench.errors import BenchError, listed_up_to, unknown

LOCAL_OPTIONS = frozenset({"max_unreadable"})
IGNORED = 255  # the label of pixels of no class
FOLDERS = {"train": "training", "val": "validation"}
DOWNLOAD = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
ON_HUB = f"{HUB}zhoubolei/scene_parse_150:scene_parsing@refs/convert/parquet"
FULL_COLUMNS = {"objects", "segmentations", "instances"}  # of the full release on the hub
CLASS_NAMES = (
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, "
    "table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, "
    "armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, "
    "chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, "
    "case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, "
    "book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, "
    "hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, "
    "dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, "
    "fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, "
    "minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, "
    "screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, "
    "monitor, bulletin board, shower, radiator, glass, clock, flag"
)
CLASSES = tuple(CLASS_NAMES.split(", "))


class Pairs(NamedTuple):
    """Images and their label maps, a row each."""

    images: Index
    maps: Index


class AdeScenes:
    """One split: images with a label map each, and without a class."""

    dataset, classes = "ade20k", CLASSES

    def __init__(self, split: str, root: str, pairs: Pairs, unreadable: dict[str, str]) -> None:
        self.split, self.root, self.unreadable = split, root, unreadable
        self._images, self._maps = pairs.images, pairs.maps

    def __len__(self) -> int:
        return len(self._images.ids)

    def __getitem__(self, index: int) -> Sample:
        """{"image": RGB, "label": -1, "map": (H, W) uint8, 0 to 149, or 255 for no class}."""
        try:
            image = decode_image(self._images.read(index))
        except BenchError:
            raise
        except Exception as error:  # damaged bytes can make a decoder raise anything; the name is what helps
            raise BenchError(f"{self._images.place(index)} cannot be read as an image: {error}") from error
        labels = label_map(self._maps.read(index), self._maps.place(index))
        if labels.shape != (image.height, image.width):
            height, width = labels.shape
            raise BenchError(
                f"{self._maps.place(index)} is {width} x {height} pixels, but its image is {image.width} x "
                f"{image.height}; a resized map is not ground truth"
            )
        return {"image": image, "label": -1, "map": labels}

    def name(self, index: int) -> str:
        """ADE_val_00000001."""
        return self._images.ids[index].decode()

    def labels(self) -> Sequence[int]:
        """-1 for every image."""
        return [-1] * len(self)

    def identity(self) -> str:
        """Hash of the names and sizes of all images and maps."""
        return content_hash(CLASSES, self._images, self._maps)

    def files(self) -> list[Piece]:
        """The bytes of every image and every map."""
        return [*pieces(self._images, "images/"), *pieces(self._maps, "annotations/")]


def open_split(
    split: str, root: str | None = None, *, minival_fraction: float = 0.0, max_unreadable: int = 0
) -> AdeScenes:
    """Open train or val below `root`, or minival, the share `minival_fraction` of train.

    Raises BenchError for an image without a map or a map without an image, for swapped folders, for the full ADE20K
    release; and, when an image is read, for a map that is not of its size, not grey, or has a label beyond 150.
    """
    disk_split = _disk_split(split, minival_fraction)
    if not root:
        raise BenchError(
            "the folder of ADE20K is not known: give --data-dir PATH, or --data-dir ade20k=PATH beside that of another "
            "task, with ADEChallengeData2016/ in it"
        )
    place = root if root.startswith(HUB) else str(Path(root).expanduser().absolute())
    pairs = _find_pairs(place, disk_split)
    if minival_fraction and disk_split == "train":
        rows = _rows_of(pairs.images, split, minival_fraction)
        pairs = Pairs(pairs.images.take(rows), pairs.maps.take(rows))
    left_out: dict[str, str] = {}
    if max_unreadable:
        images, left_out = drop_unreadable(pairs.images, max_unreadable, f"{place}, {split}")
        rows = np.flatnonzero(np.isin(pairs.images.ids, images.ids))
        pairs = Pairs(images, pairs.maps.take(rows))
    return AdeScenes(split, place, pairs, left_out)


def label_map(data: bytes, where: str) -> np.ndarray:
    """Decode the bytes of a map file: (H, W) uint8, 0 to 149, or 255 for no class.

    The one place where the labels on disk, 0 for no class and 1 to 150, are renumbered.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode not in ("L", "P"):  # converting any other mode would invent labels
                raise BenchError(
                    f"{where} is an image of mode {image.mode}; a label map has one number a pixel, 0 to 150 "
                    "(mode L). Coloured maps of the full ADE20K release are not read"
                )
            labels = np.array(image)
    except BenchError:
        raise
    except Exception as error:  # as with images
        raise BenchError(f"{where} cannot be read as a label map: {error}") from error
    if labels.max(initial=0) > len(CLASSES):
        raise BenchError(f"{where} has the label {labels.max()}; there are 0, for no class, and 1 to {len(CLASSES)}")
    return reduce_zero_label(labels)


def reduce_zero_label(labels: np.ndarray) -> np.ndarray:
    """Labels counted from 1 as labels counted from 0, uint8; 0, no class, becomes 255, and 255 stays (golden g09)."""
    return np.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1).astype(np.uint8)


def _disk_split(split: str, minival_fraction: float) -> str:
    """The split on disk from which a split is taken."""
    if split == "minival":
        if not 0 < minival_fraction < 1:
            raise BenchError("ADE20K has no split minival; set minival_fraction, such as 0.05, to cut one from train")
        return "train"
    disk_split = SPLITS.get(split, "")
    if disk_split == "test":
        raise BenchError("the label maps of ADE20K's test split are not public; what papers report is measured on val")
    if not disk_split:
        raise unknown("split of ADE20K", split, ["train", "val", "minival"])
    return disk_split


def _rows_of(images: Index, split: str, fraction: float) -> np.ndarray:
    """The rows of train without the held-out share, or, for minival, of that share."""
    order = shuffled_order(images)
    held_out = np.zeros(len(order), bool)
    held_out[order[: max(1, round(fraction * len(order)))]] = True
    return np.flatnonzero(held_out == (split == "minival"))


def _find_pairs(place: str, split: str) -> Pairs:
    """The images and maps of a split in the first layout that is found; BenchError when there is none."""
    if place.startswith(HUB):
        table = open_table(place, split)
    else:
        root = Path(place)
        subfolders(root)  # says why when it is missing, a file, or closed to us
        _refuse_full(root)
        for home in (root, root / "ADEChallengeData2016"):
            if (home / "images").is_dir() or (home / "annotations").is_dir():
                return _pair_files(home, split)
        table = open_table(place, split)
    if table is None:
        raise BenchError(
            f"{place}: no {split} of ADE20K. What is read: ADEChallengeData2016/ with images/{FOLDERS[split]} and "
            f"annotations/{FOLDERS[split]} ({DOWNLOAD}), parquet files of scene_parse_150, or {ON_HUB}"
        )
    return _read_table(table)


def _refuse_full(root: Path) -> None:
    """Raise BenchError for the full release of ADE20K, which has other classes and other files."""
    homes = [root, *root.glob("ADE20K_20*")]
    signs = [home / name for home in homes for name in ("index_ade20k.mat", "index_ade20k.pkl", "images/ADE")]
    proofs = [sign for sign in signs if sign.exists()]
    proofs += [path for home in homes for path in (home / "images").glob("*/*/*/*_seg.png")][:1]
    if proofs:
        raise BenchError(
            f"{root} is the full ADE20K release ({proofs[0].name}): over 3,000 classes, object parts, maps in colour. "
            f"Published mIoU is measured on the scene parsing benchmark, 150 classes: {DOWNLOAD}"
        )


def _pair_files(home: Path, split: str) -> Pairs:
    """The images and maps of ADEChallengeData2016, paired by name."""
    images, maps = (home / kind / FOLDERS[split] for kind in ("images", "annotations"))
    files = {tree: {Path(file.path).stem: file for file in list_images(tree)} for tree in (images, maps)}
    _refuse_swapped(files[images], files[maps], images, maps)
    for tree, other, what in ((images, maps, "label map"), (maps, images, "image")):
        alone = sorted(files[tree].keys() - files[other].keys())
        if alone:
            raise BenchError(
                f"{len(alone):,} of {len(files[tree]):,} files of {tree} have no {what} in {other}: "
                + listed_up_to([files[tree][name].path for name in alone])
            )
    if not files[images]:
        raise BenchError(f"{images}: no images in it")
    return Pairs(*(_index(tree, files[tree]) for tree in (images, maps)))


def _index(tree: Path, files: dict[str, File]) -> Index:
    names = sorted(files)
    return index_of_files(
        names,
        [-1] * len(names),
        [f"{tree}/{files[name].path}" for name in names],
        [files[name].size for name in names],
        [files[name].changed for name in names],
    )


def _refuse_swapped(images: dict[str, File], maps: dict[str, File], where: Path, other: Path) -> None:
    """Raise BenchError when the maps (PNG) are where the photographs (JPEG) should be, or maps are not PNG."""
    kinds = [{Path(file.path).suffix.lower() for file in files.values()} for files in (images, maps)]
    if kinds[0] == {".png"} and kinds[1] and ".png" not in kinds[1]:
        raise BenchError(f"{where} holds the label maps (PNG) and {other} the photographs: the folders were swapped")
    others = [file.path for file in maps.values() if not file.path.lower().endswith(".png")]
    if others:
        raise BenchError(f"{other}: {listed_up_to(sorted(others))}: a label map is a PNG; JPEG would change its labels")


def _read_table(table: ArrowTable) -> Pairs:
    """The images and maps of a table, by name."""
    columns = table.columns()
    if FULL_COLUMNS & set(columns):
        raise BenchError(
            f"{table.where} is the full ADE20K release (columns {listed_up_to(columns)}); published mIoU is measured "
            f"on the scene parsing benchmark: {ON_HUB}"
        )
    if not {"image", "annotation"} <= set(columns):
        raise BenchError(f"{table.where}: the columns are {listed_up_to(columns)}; image and annotation are needed")
    names = [Path(name).stem for name in table.names("image")]
    if len(set(names)) < len(names):  # the hub's parquet may have dropped the names
        names = [f"row/{number:08d}" for number in range(len(names))]
    no_labels = np.full(len(names), -1)
    pairs = Pairs(table.image_index("image", names, no_labels), table.image_index("annotation", names, no_labels))
    order = np.argsort(pairs.images.ids, kind="stable")
    return Pairs(pairs.images.take(order), pairs.maps.take(order))
