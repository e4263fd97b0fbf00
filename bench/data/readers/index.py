"""Index of a split: where each image is, as a range of bytes in a file, whatever the layout on disk.

An image file, a member of a tar shard and a row of an Arrow table all come down to (file, offset, size). So one
class reads them all, a split of 1.28 million images is a few arrays, and worker processes share no open file.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from bench.config.stage import digest
from bench.data.manifest import Piece
from bench.data.readers.image_files import CHUNK, SUFFIXES, decode_error, read_image
from bench.data.scan_progress import counter
from bench.data.source import Sample
from bench.errors import BenchError, listed_up_to
from bench.files import cache_folder, read_json, write_json

WORDNET_ID = re.compile(r"n\d{8}")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """The images of a split, a row each (N), in their files (F)."""

    ids: np.ndarray  # (N,) bytes: name of an image in UTF-8, unique
    labels: np.ndarray  # (N,) int32: class, -1 for none
    files: np.ndarray  # (N,) int32: number of the file it is in
    offsets: np.ndarray  # (N,) int64: its first byte there
    sizes: np.ndarray  # (N,) int64: how many bytes
    paths: np.ndarray  # (F,) bytes: the files' absolute paths
    changed: np.ndarray  # (F,) int64: when they last changed, in ns

    def take(self, rows: np.ndarray) -> Index:
        """The index of some images."""
        return replace(
            self,
            ids=self.ids[rows],
            labels=self.labels[rows],
            files=self.files[rows],
            offsets=self.offsets[rows],
            sizes=self.sizes[rows],
        )

    def path(self, row: int) -> str:
        """The file that holds an image."""
        return os.fsdecode(bytes(self.paths[self.files[row]]))

    def place(self, row: int) -> str:
        """The file that holds an image, followed by the image's name if the file holds many."""
        path, name = self.path(row), self.ids[row].decode()
        return path if path.lower().endswith(SUFFIXES) else f"{path}, {name}"

    def read(self, row: int) -> bytes:
        """The bytes of an image; BenchError when they are not all there."""
        size = int(self.sizes[row])
        try:
            # opened for each read, so that a forked worker shares no file with the others
            with open(self.path(row), "rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, int(self.offsets[row]))
        except OSError as error:
            raise BenchError(f"{self.place(row)}: {error.strerror or error}") from None
        if len(data) < size:
            raise BenchError(f"{self.place(row)} was {size:,} bytes when it was listed and is shorter now; run again")
        return data


def index_of_files(
    ids: Sequence[str], labels: Sequence[int], paths: Sequence[str], sizes: Sequence[int], changed: Sequence[int]
) -> Index:
    """The index of images that are one file each."""
    return Index(
        ids=np.array([name.encode() for name in ids], "S"),
        labels=np.array(labels, np.int32),
        files=np.arange(len(ids), dtype=np.int32),
        offsets=np.zeros(len(ids), np.int64),
        sizes=np.array(sizes, np.int64),
        paths=np.array([os.fsencode(path) for path in paths], "S"),
        changed=np.array(changed, np.int64),
    )


def concatenate(parts: Sequence[Index]) -> Index:
    """The images of several indices, one after another."""
    starts = np.cumsum([0, *(len(part.paths) for part in parts)])[:-1]
    files = [part.files + start for part, start in zip(parts, starts, strict=True)]
    names = [column.name for column in fields(Index)]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Index(**columns | {"files": np.concatenate(files).astype(np.int32)})


def sort_by_class(index: Index, where: str) -> Index:
    """The images by class, then by name: the same order in every layout. BenchError for a duplicate name."""
    names, counts = np.unique(index.ids, return_counts=True)
    if len(names) < len(index.ids):
        double = names[counts > 1][0]
        places = sorted({index.path(int(row)) for row in np.flatnonzero(index.ids == double)})
        others = int((counts > 1).sum()) - 1
        raise BenchError(
            f"{where}: two images have the name {double.decode()!r} ({' and '.join(places[:2])})"
            + (f", and {others} more names occur twice" if others else "")
            + ". A name stands for one image of a split; remove the copies"
        )
    return index.take(np.lexsort((index.ids, index.labels)))


def hold_out(index: Index, split: str, fraction: float) -> Index:
    """train without the held-out share of each class, or, for `minival`, that share: the same images every time.

    At least one image of each class is held out, and at least one is not.
    """
    if not 0 < fraction < 1:
        raise BenchError(f"minival_fraction = {fraction:g}: give a share of train between 0 and 1, such as 0.01")
    order = shuffled_order(index)
    held_out = np.zeros(len(order), bool)
    for rows in _by_class(index.labels[order]):
        count = min(len(rows) - 1, max(1, round(fraction * len(rows))))
        held_out[order[rows[:count]]] = True
    return index.take(np.flatnonzero(held_out == (split == "minival")))


def shuffled_order(index: Index) -> np.ndarray:
    """The rows in the arbitrary but fixed order of `subsets.shuffled_positions`, computed fast for many names."""
    hashes = b"".join(hashlib.blake2b(name, digest_size=8).digest() for name in index.ids.tolist())
    return np.argsort(np.frombuffer(hashes, ">u8"), kind="stable")


def _by_class(labels: np.ndarray) -> list[np.ndarray]:
    """The positions of each class, ascending."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


class IndexedSplit:
    """One split, read by its index. decode: from the bytes of an image to RGB."""

    def __init__(
        self,
        dataset: str,
        split: str,
        root: str | None,
        *,
        classes: tuple[str, ...],
        index: Index,
        decode: Callable[[bytes], Image.Image] | None = None,
        unreadable: dict[str, str] | None = None,
        lacks: Sequence[str] = (),
    ) -> None:
        self.dataset, self.split, self.root, self.classes = dataset, split, root, classes
        self.unreadable, self.lacks = unreadable or {}, tuple(lacks)
        self._index, self._decode = index, decode or decode_image

    def __len__(self) -> int:
        return len(self._index.ids)

    def __getitem__(self, index: int) -> Sample:
        """{"image": RGB, "label": class}."""
        data = self._index.read(index)
        try:
            return {"image": self._decode(data), "label": int(self._index.labels[index])}
        except Exception as error:  # damaged bytes can make a decoder raise anything; the image's name is what helps
            raise BenchError(
                f"{self._index.place(index)} cannot be read as an image ({error}). Replace it, or leave it out with "
                "--max-unreadable N"
            ) from error

    def name(self, index: int) -> str:
        """Identifier of an image, the same in every layout."""
        return self._index.ids[index].decode()

    def labels(self) -> Sequence[int]:
        """The class of every image."""
        return self._index.labels.tolist()

    def identity(self) -> str:
        """Hash of the classes, and of name, size and class of every image."""
        return content_hash(self.classes, self._index)

    def files(self) -> list[Piece]:
        """The bytes of every image."""
        return pieces(self._index)


def decode_image(data: bytes, exif_rotate: bool = False) -> Image.Image:
    """The image in the bytes of a file, as RGB."""
    return read_image(io.BytesIO(data), exif_rotate)


def content_hash(classes: Sequence[str], *indices: Index) -> str:
    """Hash of classes, names, sizes and labels, and not of where the files are: 24 hexadecimal digits."""
    listing = hashlib.blake2b("\0".join(classes).encode(), digest_size=12)
    for index in indices:
        listing.update(index.ids.tobytes() + index.sizes.astype("<i8").tobytes() + index.labels.astype("<i4").tobytes())
    return listing.hexdigest()


def pieces(index: Index, prefix: str = "") -> list[Piece]:
    """The bytes of every image, for the manifest."""
    paths = [os.fsdecode(path) for path in index.paths.tolist()]
    changed = index.changed.tolist()
    rows = zip(index.ids.tolist(), index.files.tolist(), index.sizes.tolist(), index.offsets.tolist(), strict=True)
    return [
        Piece(prefix + name.decode(), paths[file], size, changed[file], offset, number)
        for number, (name, file, size, offset) in enumerate(rows)
    ]


def drop_unreadable(index: Index, allowed: int, where: str) -> tuple[Index, dict[str, str]]:
    """The index without the images that do not decode, and name -> reason of those. BenchError for more than `allowed`.

    Every image is decoded once; the result is cached and holds while the files stay as they are.
    """
    stamp = hashlib.blake2b(index.changed.tobytes() + index.paths.tobytes(), digest_size=8).hexdigest()
    store = cache_folder() / "pictures" / f"{digest([content_hash((), index), stamp])}.json"
    if not store.exists():
        write_json(store, _decode_all(index), durable=False)
    bad = {int(row): why for row, why in read_json(store).items()}
    listed = listed_up_to([f"{index.place(row)} ({why})" for row, why in bad.items()])
    if len(bad) > allowed:
        raise BenchError(f"{where}: {len(bad)} images cannot be read, more than --max-unreadable {allowed}: {listed}")
    if bad:
        log.warning("%s: %d images cannot be read and are left out: %s", where, len(bad), listed)
    good = np.setdiff1d(np.arange(len(index.ids)), np.array(list(bad), np.int64))
    return index.take(good), {index.ids[row].decode(): why for row, why in bad.items()}


def _decode_all(index: Index) -> dict[str, str]:
    """Row -> reason for each image that does not decode."""
    chunks = [range(start, min(start + CHUNK, len(index.ids))) for start in range(0, len(index.ids), CHUNK)]
    bad: dict[str, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as threads, counter("decoding images", len(index.ids)) as count:
        for chunk, reasons in zip(chunks, threads.map(partial(_decode_rows, index), chunks), strict=True):
            bad |= {str(row): why for row, why in zip(chunk, reasons, strict=True) if why}
            count.advance(len(chunk))
    return bad


def _decode_rows(index: Index, rows: range) -> list[str]:
    return [decode_error(io.BytesIO(index.read(row)), int(index.sizes[row])) for row in rows]


def files_below(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files below a folder with these suffixes, in order; class folders of ImageNet are not searched."""
    paths: list[Path] = []
    for folder, subfolders, files in os.walk(root):
        # in place, so that os.walk skips them: class folders hold a million images and no tables or shards
        subfolders[:] = [name for name in subfolders if not (name.startswith(".") or WORDNET_ID.fullmatch(name))]
        paths += [Path(folder, name) for name in files if name.endswith(suffixes) and not name.startswith(".")]
    return sorted(paths)
