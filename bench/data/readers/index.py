"""Where each picture of a split lies: a range of bytes in a file, whatever the layout on disk.

A picture file, a member of a tar shard and a row of an Arrow table all come down to (file, offset, size). So one
class reads them all, a split of 1.28 million pictures is a few arrays, and worker processes share no open file.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from bench.config.stage import digest
from bench.data.manifest import Piece
from bench.data.readers.image_files import CHUNK, SUFFIXES, read_picture, why_unreadable
from bench.data.scan_progress import counter
from bench.data.source import Sample
from bench.errors import BenchError
from bench.files import cache_folder, read_json, write_json

NAMED = 10  # names that a message lists
WORDNET_ID = re.compile(r"n\d{8}")

log = logging.getLogger(__name__)


class Index(NamedTuple):
    """The pictures of a split, a row each (N), in the files they lie in (F)."""

    ids: np.ndarray  # (N,) bytes: name of a picture in UTF-8, unique
    labels: np.ndarray  # (N,) int32: class, -1 for none
    files: np.ndarray  # (N,) int32: number of the file it lies in
    offsets: np.ndarray  # (N,) int64: its first byte there
    sizes: np.ndarray  # (N,) int64: how many bytes
    paths: np.ndarray  # (F,) bytes: the files' absolute paths
    changed: np.ndarray  # (F,) int64: when they last changed, in ns

    def take(self, rows: np.ndarray) -> Index:
        """The index of some pictures."""
        return self._replace(
            ids=self.ids[rows],
            labels=self.labels[rows],
            files=self.files[rows],
            offsets=self.offsets[rows],
            sizes=self.sizes[rows],
        )

    def path(self, row: int) -> str:
        """The file a picture lies in."""
        return os.fsdecode(bytes(self.paths[self.files[row]]))

    def place(self, row: int) -> str:
        """The file a picture lies in and, where that holds many, its name there."""
        path, name = self.path(row), self.ids[row].decode()
        return path if path.lower().endswith(SUFFIXES) else f"{path}, {name}"

    def read(self, row: int) -> bytes:
        """The bytes of a picture; BenchError when they are not all there."""
        size = int(self.sizes[row])
        try:
            with open(self.path(row), "rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, int(self.offsets[row]))
        except OSError as error:
            raise BenchError(f"{self.place(row)}: {error.strerror or error}") from None
        if len(data) < size:
            raise BenchError(f"{self.place(row)} was {size:,} bytes when it was listed and is shorter now; run again")
        return data


def whole_files(
    ids: Sequence[str], labels: Sequence[int], paths: Sequence[str], sizes: Sequence[int], changed: Sequence[int]
) -> Index:
    """The index of pictures that are a file each."""
    return Index(
        ids=np.array([name.encode() for name in ids], "S"),
        labels=np.array(labels, np.int32),
        files=np.arange(len(ids), dtype=np.int32),
        offsets=np.zeros(len(ids), np.int64),
        sizes=np.array(sizes, np.int64),
        paths=np.array([os.fsencode(path) for path in paths], "S"),
        changed=np.array(changed, np.int64),
    )


def joined(parts: Sequence[Index]) -> Index:
    """The pictures of several indices, one after another."""
    before = np.cumsum([0, *(len(part.paths) for part in parts)])
    files = [part.files + start for part, start in zip(parts, before[:-1], strict=True)]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in Index._fields}
    return Index(**columns | {"files": np.concatenate(files).astype(np.int32)})


def ordered(index: Index, where: str) -> Index:
    """The pictures by class, and by name within it: the same order in every layout. BenchError for a name twice."""
    names, counts = np.unique(index.ids, return_counts=True)
    if len(names) < len(index.ids):
        double = names[counts > 1][0]
        places = sorted({index.path(int(row)) for row in np.flatnonzero(index.ids == double)})
        more = int((counts > 1).sum()) - 1
        raise BenchError(
            f"{where}: two pictures have the name {double.decode()!r} ({' and '.join(places[:2])})"
            + (f", and so have {more} more names" if more else "")
            + ". A name stands for one picture of a split; remove the copies"
        )
    return index.take(np.lexsort((index.ids, index.labels)))


def carve(index: Index, split: str, fraction: float) -> Index:
    """Without the held-out share of each class, or for `minival` that share: the same pictures every time.

    A class gives at least one picture, and keeps at least one.
    """
    if not 0 < fraction < 1:
        raise BenchError(f"minival_fraction = {fraction:g}: give a share of train between 0 and 1, such as 0.01")
    order = shuffled_rows(index)
    held = np.zeros(len(order), bool)
    for rows in _by_class(index.labels[order]):
        count = min(len(rows) - 1, max(1, round(fraction * len(rows))))
        held[order[rows[:count]]] = True
    return index.take(np.flatnonzero(held == (split == "minival")))


def shuffled_rows(index: Index) -> np.ndarray:
    """The rows in an order that is arbitrary, but the same everywhere and for ever: as `shuffled`, for many names."""
    hashes = b"".join(hashlib.blake2b(name, digest_size=8).digest() for name in index.ids.tolist())
    return np.argsort(np.frombuffer(hashes, ">u8"), kind="stable")


def _by_class(labels: np.ndarray) -> list[np.ndarray]:
    """For each class the positions where it stands, ascending."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


class Indexed:
    """One split, read by its index. `decode` makes a picture of the bytes."""

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
        self._index, self._decode = index, decode or decoded

    def __len__(self) -> int:
        return len(self._index.ids)

    def __getitem__(self, index: int) -> Sample:
        """{"image": RGB picture, "label": class}."""
        data = self._index.read(index)
        try:
            return {"image": self._decode(data), "label": int(self._index.labels[index])}
        except Exception as error:  # damaged bytes make a decoder raise anything; the picture's name is what helps
            raise BenchError(
                f"{self._index.place(index)} is no picture that can be read ({error}). Replace it, or let "
                "--max-unreadable N leave it out"
            ) from error

    def name(self, index: int) -> str:
        """Identifier of a picture, the same in every layout of the data."""
        return self._index.ids[index].decode()

    def labels(self) -> Sequence[int]:
        """The class of every picture."""
        return self._index.labels.tolist()

    def identity(self) -> str:
        """Hash of the classes, and of name, size and class of every picture."""
        return contents(self.classes, self._index)

    def files(self) -> list[Piece]:
        """The bytes of every picture."""
        return pieces(self._index)


def decoded(data: bytes, exif_rotate: bool = False) -> Image.Image:
    """The picture in the bytes of a file, as RGB."""
    return read_picture(io.BytesIO(data), exif_rotate)


def contents(classes: Sequence[str], *indices: Index) -> str:
    """Hash of what is listed, and not of where it lies: 24 hexadecimal digits."""
    listing = hashlib.blake2b("\0".join(classes).encode(), digest_size=12)
    for index in indices:
        listing.update(index.ids.tobytes() + index.sizes.astype("<i8").tobytes() + index.labels.astype("<i4").tobytes())
    return listing.hexdigest()


def pieces(index: Index, prefix: str = "") -> list[Piece]:
    """The bytes of every picture, as a manifest takes them."""
    paths = [os.fsdecode(path) for path in index.paths.tolist()]
    changed = index.changed.tolist()
    rows = zip(index.ids.tolist(), index.files.tolist(), index.sizes.tolist(), index.offsets.tolist(), strict=True)
    return [
        Piece(prefix + name.decode(), paths[file], size, changed[file], offset, number)
        for number, (name, file, size, offset) in enumerate(rows)
    ]


def readable(index: Index, allowed: int, where: str) -> tuple[Index, dict[str, str]]:
    """The index without the pictures that do not decode, and why each does not. BenchError if more than `allowed`.

    Every picture is decoded once; the outcome is kept in the cache for as long as the files stay as they are.
    """
    stamp = hashlib.blake2b(index.changed.tobytes() + index.paths.tobytes(), digest_size=8).hexdigest()
    store = cache_folder() / "pictures" / f"{digest([contents((), index), stamp])}.json"
    if not store.exists():
        write_json(store, _decode_all(index), durable=False)
    bad = {int(row): why for row, why in read_json(store).items()}
    named = some([f"{index.place(row)} ({why})" for row, why in bad.items()])
    if len(bad) > allowed:
        raise BenchError(f"{where}: {len(bad)} pictures cannot be read, more than --max-unreadable {allowed}: {named}")
    if bad:
        log.warning("%s: %d pictures cannot be read and are left out: %s", where, len(bad), named)
    kept = np.setdiff1d(np.arange(len(index.ids)), np.array(list(bad), np.int64))
    return index.take(kept), {index.ids[row].decode(): why for row, why in bad.items()}


def _decode_all(index: Index) -> dict[str, str]:
    """Row -> reason for each picture that does not decode."""
    chunks = [range(start, min(start + CHUNK, len(index.ids))) for start in range(0, len(index.ids), CHUNK)]
    found: dict[str, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as threads, counter("decoding pictures", len(index.ids)) as count:
        for chunk, reasons in zip(chunks, threads.map(partial(_decode_some, index), chunks), strict=True):
            found |= {str(row): why for row, why in zip(chunk, reasons, strict=True) if why}
            count.advance(len(chunk))
    return found


def _decode_some(index: Index, rows: range) -> list[str]:
    return [why_unreadable(io.BytesIO(index.read(row)), int(index.sizes[row])) for row in rows]


def files_below(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files below a folder whose names end so, in order; class folders of ImageNet are not searched."""
    found: list[Path] = []
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if not (name.startswith(".") or WORDNET_ID.fullmatch(name))]
        found += [Path(folder, name) for name in files if name.endswith(suffixes) and not name.startswith(".")]
    return sorted(found)


def some(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return (", ".join(names[:NAMED]) or "none") + more
