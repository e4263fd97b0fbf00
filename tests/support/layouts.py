"""Tiny data in the layouts that the real data sets come in: the same images, written in each of them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

WORDNET_IDS = ("n01440764", "n01443537", "n02119789")  # tench, goldfish, kit fox
ENGLISH = ("tench, Tinca tinca", "goldfish, Carassius auratus", "kit fox, Vulpes macrotis")
COUNTS = {"train": 4, "val": 2}  # images of a class
CLASSES = " ".join(WORDNET_IDS)


class Photo(NamedTuple):
    """One image: its name in the data set, its class, its JPEG file."""

    name: str
    label: int
    data: bytes


def jpeg(seed: int, size: tuple[int, int] = (40, 34), mode: str = "RGB") -> bytes:
    """A small image, as the bytes of its file: one colour per seed, and noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, 3) // 2 + rng.integers(0, 128, (size[1], size[0], 3))
    return encoded(Image.fromarray(pixels.astype(np.uint8)).convert(mode), "jpeg")


def encoded(image: Image.Image, kind: str) -> bytes:
    """The bytes of an image file."""
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def opened(data: bytes) -> Image.Image:
    """The image in the bytes of a file."""
    return Image.open(io.BytesIO(data))


def photos(split: str) -> Iterator[Photo]:
    """The images of a split, in the order of the originals: val is numbered across classes."""
    for turn in range(COUNTS[split]):
        for label, wordnet_id in enumerate(WORDNET_IDS):
            number = turn * len(WORDNET_IDS) + label
            name = f"{wordnet_id}_{100 + turn}" if split == "train" else f"ILSVRC2012_val_{number + 1:08d}"
            yield Photo(name, label, jpeg(1000 * (split == "val") + number))


def write(path: Path, data: bytes | str) -> Path:
    """A file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def folders(root: Path) -> Path:
    """train/<WordNet id>/*.JPEG, val/<WordNet id>/*.JPEG."""
    for split in COUNTS:
        for photo in photos(split):
            write(root / split / WORDNET_IDS[photo.label] / f"{photo.name}.JPEG", photo.data)
    return root


def kaggle(root: Path) -> Path:
    """Kaggle's archive: train in class folders, val flat, its classes in a table."""
    place = root / "ILSVRC/Data/CLS-LOC"
    for photo in photos("train"):
        write(place / "train" / WORDNET_IDS[photo.label] / f"{photo.name}.JPEG", photo.data)
    rows = ["ImageId,PredictionString"]
    for photo in photos("val"):
        write(place / "val" / f"{photo.name}.JPEG", photo.data)
        rows.append(f"{photo.name},{WORDNET_IDS[photo.label]} 1 2 30 30 {WORDNET_IDS[photo.label]} 3 4 9 9")
    write(root / "LOC_val_solution.csv", "\n".join(rows) + "\n")
    return root


def shard(path: Path, samples: list[tuple[str, dict[str, bytes]]]) -> Path:
    """A tar shard: for each sample its members KEY.KIND."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, members in samples:
            for kind, data in members.items():
                member = tarfile.TarInfo(f"{key}.{kind}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def shards(root: Path, split: str = "", label: str = "cls") -> Path:
    """Two WebDataset shards of each split, samples in no order of class."""
    for each in [split] if split else COUNTS:
        samples = [(photo.name, {"jpg": photo.data, label: label_bytes(photo, label)}) for photo in photos(each)]
        half = len(samples) // 2
        for number, part in enumerate((samples[half:], samples[:half])):
            shard(root / f"imagenet1k-{each}-{number:04d}.tar", part)
    return root


def label_bytes(photo: Photo, kind: str) -> bytes:
    """What a label member holds."""
    return str(photo.label).encode() if kind == "cls" else json.dumps({"label": photo.label, "width": 40}).encode()


def table(rows: list[dict[str, Any]], names: dict[str, list[str]]) -> pa.Table:
    """Rows as `datasets` writes them: images as {bytes, path}, the names of classes in the schema's notes."""
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kinds = {key: picture if isinstance(value, dict) else pa.int64() for key, value in rows[0].items()}
    features = {key: {"names": value, "_type": "ClassLabel"} for key, value in names.items()}
    features |= {key: {"_type": "Image"} for key in kinds if kinds[key] == picture}
    notes = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema([pa.field(key, kind) for key, kind in kinds.items()], metadata=notes)
    return pa.Table.from_pylist(rows, schema=schema)


def hub_rows(split: str) -> list[dict[str, Any]]:
    """Rows of ILSVRC/imagenet-1k, whose file names carry the class as well."""
    return [
        {
            "image": {"bytes": photo.data, "path": f"{photo.name}_{WORDNET_IDS[photo.label]}.JPEG"},
            "label": photo.label,
        }
        for photo in photos(split)
    ]


def parquet(root: Path) -> Path:
    """data/train-00000-of-00002.parquet and so on, as the hub keeps them."""
    for split, theirs in (("train", "train"), ("val", "validation")):
        rows = hub_rows(split)
        for number, part in enumerate((rows[:5], rows[5:])):
            path = root / "data" / f"{theirs}-{number:05d}-of-00002.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table(part, {"label": list(ENGLISH)}), path, row_group_size=2)
    return root


def saved(root: Path) -> Path:
    """A folder written by `datasets` itself, with save_to_disk."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features
    from datasets import Image as Picture

    features = Features({"image": Picture(), "label": ClassLabel(names=list(WORDNET_IDS))})
    made = {
        theirs: Dataset.from_list(hub_rows(split), features=features)
        for split, theirs in (("train", "train"), ("val", "validation"))
    }
    DatasetDict(made).save_to_disk(str(root), num_shards={"train": 2, "validation": 1})
    return root


HAS_HUB = find_spec("datasets.load") is not None  # the package, and not the folder that this file lies in
IMAGENET = {"folders": folders, "kaggle": kaggle, "shards": shards, "parquet": parquet}
if HAS_HUB:
    IMAGENET["saved"] = saved


def cifar_pictures(split: str, classes: int = 100) -> list[tuple[int, np.ndarray]]:
    """Labels, and images of 32 x 32 pixels: two of each class to learn from, one to be scored."""
    count = 2 * classes if split == "train" else classes
    rng = np.random.default_rng(count)
    labels = rng.permutation(count) % classes
    return [(int(label), rng.integers(0, 256, (32, 32, 3), np.uint8)) for label in labels]


def cifar_class(label: int) -> str:
    """The name of a class; ranks of names and numbers agree, as in CIFAR."""
    return f"class_{label:02d}"


def record(label: int, picture: np.ndarray, classes: int) -> bytes:
    """A record of the binary version; CIFAR-100 puts the coarse label before the fine one."""
    labels = [label // 5, label] if classes == 100 else [label]
    return bytes(labels) + picture.transpose(2, 0, 1).tobytes()


def cifar_binary(root: Path, classes: int = 100) -> Path:
    """cifar-100-binary/ or cifar-10-batches-bin/."""
    home = root / ("cifar-100-binary" if classes == 100 else "cifar-10-batches-bin")
    names = "fine_label_names.txt" if classes == 100 else "batches.meta.txt"
    write(home / names, "\n".join(map(cifar_class, range(classes))) + "\n\n")
    for split in ("train", "test"):
        records = [record(label, picture, classes) for label, picture in cifar_pictures(split, classes)]
        parts = np.array_split(np.arange(len(records)), 5 if classes == 10 and split == "train" else 1)
        for number, rows in enumerate(parts, 1):
            batch = "test_batch" if split == "test" else f"data_batch_{number}"
            write(home / f"{split if classes == 100 else batch}.bin", b"".join(records[row] for row in rows))
    return root


def cifar_parquet(root: Path, classes: int = 100) -> Path:
    """cifar100/train-00000-of-00001.parquet and so on, as uoft-cs/cifar100 has them: PNG files without names."""
    label = "fine_label" if classes == 100 else "label"
    for split in ("train", "test"):
        rows: list[dict[str, Any]] = []
        for number, picture in cifar_pictures(split, classes):
            png = encoded(Image.fromarray(picture), "png")
            rows.append({"img": {"bytes": png, "path": None}, label: number})
            if classes == 100:
                rows[-1]["coarse_label"] = number // 5
        path = root / f"cifar{classes}" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(rows, {label: [cifar_class(number) for number in range(classes)]}), path)
    return root


def cifar_folders(root: Path, classes: int = 100) -> Path:
    """train/<class>/*.png and test/<class>/*.png."""
    for split in ("train", "test"):
        for number, (label, picture) in enumerate(cifar_pictures(split, classes)):
            write(root / split / cifar_class(label) / f"{number:05d}.png", encoded(Image.fromarray(picture), "png"))
    return root


CIFAR = {"binary": cifar_binary, "parquet": cifar_parquet, "folders": cifar_folders}


def scene(split: str, number: int) -> tuple[bytes, np.ndarray]:
    """A photograph, and the labels of its pixels as they are on disk: 0 for no class, 1 to 150."""
    seed = number + 100 * (split == "val")
    width, height = 40 + 3 * number, 36 + number
    labels = np.add.outer(np.arange(height) // 9 * 37, np.arange(width) // 11 * 13 + seed) % 151
    labels[0, :4] = 0, 1, 150, 0
    return jpeg(seed, (width, height)), labels.astype(np.uint8)


def scenes(split: str) -> Iterator[tuple[str, bytes, bytes]]:
    """Name, image file and map file of each scene of a split."""
    for number in range(6 if split == "train" else 3):
        photo, labels = scene(split, number)
        yield f"ADE_{split}_{number + 1:08d}", photo, encoded(Image.fromarray(labels), "png")


def ade_folders(root: Path) -> Path:
    """ADEChallengeData2016/{images,annotations}/{training,validation}."""
    home = root / "ADEChallengeData2016"
    for split, folder in (("train", "training"), ("val", "validation")):
        for name, photo, covered in scenes(split):
            write(home / "images" / folder / f"{name}.jpg", photo)
            write(home / "annotations" / folder / f"{name}.png", covered)
    return root


def ade_parquet(root: Path) -> Path:
    """scene_parsing/train/0000.parquet and so on, as the parquet revision of scene_parse_150 has them."""
    for split, folder in (("train", "train"), ("val", "validation")):
        rows = [
            {
                "image": {"bytes": photo, "path": f"{name}.jpg"},
                "annotation": {"bytes": covered, "path": f"{name}.png"},
                "scene_category": 0,
            }
            for name, photo, covered in scenes(split)
        ]
        path = root / "scene_parsing" / folder / "0000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(rows, {}), path)
    return root


ADE20K = {"folders": ade_folders, "parquet": ade_parquet}
