"""ADE20K scene parsing, the 150-class benchmark: pictures and, for each pixel, which class covers it.

    ADEChallengeData2016/{images,annotations}/{training,validation}/ADE_{train,val}_00000001.{jpg,png}
    *train*.parquet, *validation*.parquet         columns image and annotation, as scene_parse_150 of the hub

On disk 0 stands for what belongs to no class, and 1 to 150 for the classes. This file alone turns them into 255, which
counts for nothing, and 0 to 149 (mmsegmentation: reduce_zero_label). A map is never resized here.
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
from bench.data.readers.image_files import File, list_pictures, subfolders
from bench.data.readers.index import Index, contents, decoded, pieces, readable, shuffled_rows, some, whole_files
from bench.data.source import Sample
from bench.errors import BenchError, unknown

LOCAL_OPTIONS = frozenset({"max_unreadable"})
NOTHING = 255  # the label of pixels that belong to no class
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
    """Pictures and their label maps, row by row."""

    images: Index
    maps: Index


class AdeScenes:
    """One split: pictures with a label map each, and no class of their own."""

    dataset, classes = "ade20k", CLASSES

    def __init__(self, split: str, root: str, pairs: Pairs, unreadable: dict[str, str]) -> None:
        self.split, self.root, self.unreadable = split, root, unreadable
        self._images, self._maps = pairs

    def __len__(self) -> int:
        return len(self._images.ids)

    def __getitem__(self, index: int) -> Sample:
        """{"image": RGB picture, "label": -1, "map": (H, W) uint8, 0 to 149, or 255 for no class}."""
        try:
            image = decoded(self._images.read(index))
        except BenchError:
            raise
        except Exception as error:  # damaged bytes make a decoder raise anything; the name is what helps
            raise BenchError(f"{self._images.place(index)} is no picture that can be read: {error}") from error
        covered = label_map(self._maps.read(index), self._maps.place(index))
        if covered.shape != (image.height, image.width):
            height, width = covered.shape
            raise BenchError(
                f"{self._maps.place(index)} is {width} x {height} pixels, but its picture is {image.width} x "
                f"{image.height}; a map that was resized is no ground truth"
            )
        return {"image": image, "label": -1, "map": covered}

    def name(self, index: int) -> str:
        """ADE_val_00000001."""
        return self._images.ids[index].decode()

    def labels(self) -> Sequence[int]:
        """-1 for every picture."""
        return [-1] * len(self)

    def identity(self) -> str:
        """Hash of name and size of every picture and map."""
        return contents(CLASSES, self._images, self._maps)

    def files(self) -> list[Piece]:
        """The bytes of every picture and every map."""
        return [*pieces(self._images, "images/"), *pieces(self._maps, "annotations/")]


def open_split(
    split: str, root: str | None = None, *, minival_fraction: float = 0.0, max_unreadable: int = 0
) -> AdeScenes:
    """A split, train or val, found below `root`; or minival, a share `minival_fraction` of train.

    Raises BenchError for a picture without map and the reverse, for folders that were swapped, for the full ADE20K
    release; and, when a picture is read, for a map that is not its size, not grey, or has a label beyond 150.
    """
    held = _held_split(split, minival_fraction)
    if not root:
        raise BenchError(
            "ADE20K lies nowhere yet: give --data-dir PATH, or --data-dir ade20k=PATH beside that of another task, "
            "with ADEChallengeData2016/ in it"
        )
    place = root if root.startswith(HUB) else str(Path(root).expanduser().absolute())
    pairs = _found(place, held)
    if minival_fraction and held == "train":
        rows = _share(pairs.images, split, minival_fraction)
        pairs = Pairs(pairs.images.take(rows), pairs.maps.take(rows))
    left_out: dict[str, str] = {}
    if max_unreadable:
        kept, left_out = readable(pairs.images, max_unreadable, f"{place}, {split}")
        rows = np.flatnonzero(np.isin(pairs.images.ids, kept.ids))
        pairs = Pairs(kept, pairs.maps.take(rows))
    return AdeScenes(split, place, pairs, left_out)


def label_map(data: bytes, where: str) -> np.ndarray:
    """The classes of all pixels from the bytes of a map file: (H, W) uint8, 0 to 149, or 255 for no class.

    The one place where the labels on disk, 0 for no class and 1 to 150, are renumbered.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode not in ("L", "P"):
                raise BenchError(
                    f"{where} is a picture of mode {image.mode}; a label map has one number a pixel, 0 to 150 "
                    "(mode L). Coloured maps of the full ADE20K release are not read"
                )
            labels = np.array(image)
    except BenchError:
        raise
    except Exception as error:  # as with pictures
        raise BenchError(f"{where} is no label map that can be read: {error}") from error
    if labels.max(initial=0) > len(CLASSES):
        raise BenchError(f"{where} has the label {labels.max()}; there are 0, for no class, and 1 to {len(CLASSES)}")
    return without_zero(labels)


def without_zero(labels: np.ndarray) -> np.ndarray:
    """Labels counted from 1, uint8, as labels counted from 0: 0 is no class, and 255 stays so (golden g09)."""
    return np.where((labels == 0) | (labels == NOTHING), NOTHING, labels - 1).astype(np.uint8)


def _held_split(split: str, minival_fraction: float) -> str:
    """The split on disk that a split is taken from."""
    if split == "minival":
        if not 0 < minival_fraction < 1:
            raise BenchError("ADE20K has no split minival; set minival_fraction, such as 0.05, to cut one from train")
        return "train"
    held = SPLITS.get(split, "")
    if held == "test":
        raise BenchError("the label maps of ADE20K's test split are not public; what papers report is measured on val")
    if not held:
        raise unknown("split of ADE20K", split, ["train", "val", "minival"])
    return held


def _share(images: Index, split: str, fraction: float) -> np.ndarray:
    """The rows of train without the held-out share, or of that share."""
    order = shuffled_rows(images)
    held = np.zeros(len(order), bool)
    held[order[: max(1, round(fraction * len(order)))]] = True
    return np.flatnonzero(held == (split == "minival"))


def _found(place: str, split: str) -> Pairs:
    if place.startswith(HUB):
        table = open_table(place, split)
    else:
        root = Path(place)
        subfolders(root)  # says why when it is missing, a file, or closed to us
        _refuse_full(root)
        for home in (root, root / "ADEChallengeData2016"):
            if (home / "images").is_dir() or (home / "annotations").is_dir():
                return _paired(home, split)
        table = open_table(place, split)
    if table is None:
        raise BenchError(
            f"{place}: no {split} of ADE20K. What is read: ADEChallengeData2016/ with images/{FOLDERS[split]} and "
            f"annotations/{FOLDERS[split]} ({DOWNLOAD}), parquet files of scene_parse_150, or {ON_HUB}"
        )
    return _rows(table)


def _refuse_full(root: Path) -> None:
    """BenchError for the full release of ADE20K, which has other classes and other files."""
    homes = [root, *root.glob("ADE20K_20*")]
    signs = [home / name for home in homes for name in ("index_ade20k.mat", "index_ade20k.pkl", "images/ADE")]
    seen = [sign for sign in signs if sign.exists()]
    seen += [path for home in homes for path in (home / "images").glob("*/*/*/*_seg.png")][:1]
    if seen:
        raise BenchError(
            f"{root} is the full ADE20K release ({seen[0].name}): over 3,000 classes, object parts, maps in colour. "
            f"Published mIoU is measured on the scene parsing benchmark, 150 classes: {DOWNLOAD}"
        )


def _paired(home: Path, split: str) -> Pairs:
    """The pictures and maps of ADEChallengeData2016, matched by name."""
    images, maps = (home / kind / FOLDERS[split] for kind in ("images", "annotations"))
    listed = {tree: {Path(file.path).stem: file for file in list_pictures(tree)} for tree in (images, maps)}
    _not_swapped(listed[images], listed[maps], images, maps)
    for tree, other, what in ((images, maps, "label map"), (maps, images, "picture")):
        alone = sorted(listed[tree].keys() - listed[other].keys())
        if alone:
            raise BenchError(
                f"{len(alone):,} of {len(listed[tree]):,} files of {tree} have no {what} in {other}: "
                + some([listed[tree][name].path for name in alone])
            )
    if not listed[images]:
        raise BenchError(f"{images}: no pictures in it")
    return Pairs(*(_index(tree, listed[tree]) for tree in (images, maps)))


def _index(tree: Path, files: dict[str, File]) -> Index:
    names = sorted(files)
    return whole_files(
        names,
        [-1] * len(names),
        [f"{tree}/{files[name].path}" for name in names],
        [files[name].size for name in names],
        [files[name].changed for name in names],
    )


def _not_swapped(images: dict[str, File], maps: dict[str, File], where: Path, other: Path) -> None:
    """BenchError when what should be photographs (JPEG) are maps (PNG), and the reverse."""
    kinds = [{Path(file.path).suffix.lower() for file in files.values()} for files in (images, maps)]
    if kinds[0] == {".png"} and kinds[1] and ".png" not in kinds[1]:
        raise BenchError(f"{where} holds the label maps (PNG) and {other} the photographs: the folders were swapped")
    odd = [file.path for file in maps.values() if not file.path.lower().endswith(".png")]
    if odd:
        raise BenchError(f"{other}: {some(sorted(odd))}: a label map is a PNG; JPEG would change its labels")


def _rows(table: ArrowTable) -> Pairs:
    """The pictures and maps of a table."""
    columns = table.columns()
    if FULL_COLUMNS & set(columns):
        raise BenchError(
            f"{table.where} is the full ADE20K release (columns {some(columns)}); published mIoU is measured on the "
            f"scene parsing benchmark: {ON_HUB}"
        )
    if not {"image", "annotation"} <= set(columns):
        raise BenchError(f"{table.where}: the columns are {some(columns)}; image and annotation are needed")
    names = [Path(name).stem for name in table.names("image")]
    if len(set(names)) < len(names):  # the hub's parquet may have dropped the names
        names = [f"row/{number:08d}" for number in range(len(names))]
    none = np.full(len(names), -1)
    pairs = Pairs(table.pictures("image", names, none), table.pictures("annotation", names, none))
    order = np.argsort(pairs.images.ids, kind="stable")
    return Pairs(pairs.images.take(order), pairs.maps.take(order))
