"""Images in Arrow tables: parquet files, a folder written by `save_to_disk`, or a data set of the Hugging Face hub.

Arrow stores the bytes of all images of a record batch one after another, uncompressed, so a row is a range of bytes
of its file, with random access. Parquet compresses them; such files are converted to Arrow once, in the cache, as the
package `datasets` does it. That package is needed only for the hub.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.config.schema import HUB
from bench.config.stage import digest
from bench.data.readers.index import Index, files_below
from bench.data.scan_progress import counter
from bench.errors import BenchError, listed_up_to
from bench.files import cache_folder

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
ROWS = 256  # converted at a time


@dataclass(frozen=True, slots=True)
class ArrowTable:
    """The Arrow files of a split; `where` names them in messages."""

    files: list[Path]
    where: str

    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(_schema(self.files[0]).names)

    def class_names(self, column: str) -> list[str]:
        """The class names of a label column, if the file has Hugging Face's metadata; else []."""
        metadata = (_schema(self.files[0]).metadata or {}).get(b"huggingface", b"{}")
        features = (json.loads(metadata).get("info") or {}).get("features") or {}
        return list((features.get(column) or {}).get("names") or [])

    def labels(self, column: str) -> np.ndarray:
        """The values of a label column: (rows,) int64."""
        parts = [batch.column(column).to_numpy(zero_copy_only=False) for batch in self._batches()]
        if any(part.dtype.kind not in "iu" for part in parts):
            raise BenchError(f"{self.where}: the column {column} should hold whole numbers, in every row")
        return np.concatenate(parts).astype(np.int64)

    def names(self, column: str) -> list[str]:
        """The file names that came with the images of a column; '' for a row without one."""
        paths: list[str] = []
        for batch in self._batches():
            array = batch.column(column)
            values = _field(array, "path")
            paths += [""] * len(array) if values is None else [path or "" for path in values.to_pylist()]
        return [Path(path).name for path in paths]

    def image_index(self, column: str, ids: Sequence[str], labels: np.ndarray) -> Index:
        """The index of the images of a column, in the order of the rows."""
        ranges = [_byte_ranges(path, column) for path in self.files]
        status = [path.stat() for path in self.files]
        return Index(
            ids=np.array([name.encode() for name in ids], "S"),
            labels=labels.astype(np.int32),
            files=np.repeat(np.arange(len(ranges), dtype=np.int32), [len(sizes) for _, sizes in ranges]),
            offsets=np.concatenate([offsets for offsets, _ in ranges]),
            sizes=np.concatenate([sizes for _, sizes in ranges]),
            paths=np.array([os.fsencode(path) for path in self.files], "S"),
            changed=np.array([item.st_mtime_ns for item in status], np.int64),
        )

    def _batches(self) -> Iterator[Any]:
        for path in self.files:
            yield from _open(path)[0]


def open_table(root: str, split: str) -> ArrowTable | None:
    """The table of a split at `root`, a folder or hf:NAME; None for a folder without one."""
    if root.startswith(HUB):
        return ArrowTable(_load_from_hub(root, split), f"{root}, {split}")
    if arrow := saved_arrow_files(Path(root), split):
        return ArrowTable(arrow, f"{Path(root)}, {split}")
    if parquet := parquet_files(Path(root), split):
        return ArrowTable([_to_arrow(path) for path in parquet], f"{Path(root)}, {split}")
    return None


def split_of(path: str) -> str:
    """The split that a path below a data folder names, the word nearest to its end deciding; '' for none."""
    named = [SPLITS[word] for word in re.findall(r"[a-z]+", path.lower()) if word in SPLITS]
    return named[-1] if named else ""


def parquet_files(root: Path, split: str) -> list[Path]:
    """The parquet files of a split, in order."""
    paths = [path for path in files_below(root, (".parquet",)) if split_of(str(path.relative_to(root))) == split]
    # scene_parse_150 on the hub has the same images a second time, for another task
    return [path for path in paths if "instance_segmentation" not in path.parts]


def saved_arrow_files(root: Path, split: str) -> list[Path]:
    """The Arrow files of a split that `datasets` wrote with save_to_disk."""
    folders = [path for path in sorted(root.glob("*")) if path.is_dir() and split_of(path.name) == split]
    for folder in [*folders, *([root] if split_of(root.name) == split else [])]:
        state = folder / "state.json"
        if state.exists():
            return [folder / file["filename"] for file in _json(state)["_data_files"]]
    return []


def _load_from_hub(root: str, split: str) -> list[Path]:
    """The Arrow files that `datasets` makes of a data set of the hub, which it downloads if need be."""
    name, _, revision = root.removeprefix(HUB).partition("@")
    name, _, configuration = name.partition(":")
    try:
        from datasets import load_dataset
    except ImportError:
        raise BenchError(f"{root} needs the package datasets: pip install datasets; {_by_hand(name)}") from None
    try:
        loaded = load_dataset(name, configuration or None, revision=revision or None)
    except Exception as error:  # of the network, of access rights, of the library: the remedy is the same
        raise BenchError(f"{root} cannot be loaded ({error}). {_by_hand(name)}") from None
    keys = [key for key in loaded if split_of(key) == split]
    if not keys:
        raise BenchError(f"{root} has no split {split}; it has {listed_up_to(sorted(loaded))}")
    return [Path(file["filename"]) for file in loaded[keys[0]].cache_files]


def _by_hand(name: str) -> str:
    return (
        f"With a connection, and after its terms were accepted: hf download {name} --repo-type dataset "
        "--local-dir PATH, then --data-dir PATH"
    )


def _to_arrow(path: Path) -> Path:
    """A parquet file as an Arrow file in the cache, converted once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    status = path.stat()
    arrow = cache_folder() / "tables" / f"{path.stem}-{digest([str(path), status.st_size, status.st_mtime_ns])}.arrow"
    if arrow.exists():
        return arrow
    temporary = arrow.with_name(f".{arrow.name}.{os.getpid()}.tmp")  # renamed at the end: others see all or nothing
    try:
        arrow.parent.mkdir(parents=True, exist_ok=True)
        _check_room(arrow.parent, 2 * status.st_size, path)
        with (
            pq.ParquetFile(path) as packed,
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_stream(sink, packed.schema_arrow) as writer,
            counter(f"unpacking {path.name}", packed.metadata.num_rows) as count,
        ):
            for batch in packed.iter_batches(batch_size=ROWS):
                writer.write_batch(batch)
                count.advance(len(batch))
        temporary.replace(arrow)
    except (pa.ArrowException, OSError) as error:
        temporary.unlink(missing_ok=True)
        raise BenchError(f"{path} cannot be unpacked into {arrow.parent}: {error}") from None
    return arrow


def _check_room(folder: Path, needed: int, path: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BenchError(
            f"{path} needs up to {needed / 1e9:.1f} GB to be unpacked in {folder}, where {free / 1e9:.1f} GB are left; "
            "set BENCH_CACHE to a folder on another disk"
        )


def _open(path: Path) -> tuple[list[Any], Any]:
    """The record batches of an Arrow file, and the memory-mapped bytes of the whole file."""
    import pyarrow as pa

    try:
        mapped = pa.memory_map(str(path))
        whole = mapped.read_buffer(mapped.size())
        return list(pa.ipc.open_stream(whole)), whole
    except (pa.ArrowException, OSError) as error:
        raise BenchError(f"{path} is damaged or no Arrow stream: {error}") from None


def _schema(path: Path) -> Any:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as mapped:
            return pa.ipc.open_stream(mapped).schema
    except (pa.ArrowException, OSError) as error:
        raise BenchError(f"{path} is damaged or no Arrow stream: {error}") from None


def _field(array: Any, name: str) -> Any:
    """A field of a struct column, None if it has no such field; a plain column is its own `bytes`."""
    import pyarrow as pa

    if not pa.types.is_struct(array.type):
        return array if name == "bytes" else None
    names = [array.type.field(number).name for number in range(array.type.num_fields)]
    return array.field(names.index(name)) if name in names else None


def _byte_ranges(path: Path, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Offset and size in the file of each row's image: two arrays (rows,) int64."""
    import pyarrow as pa

    batches, whole = _open(path)
    offsets, sizes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for batch in batches:
        array = _field(batch.column(column), "bytes")
        if array is None or not (pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type)):
            raise BenchError(f"{path}: the column {column} holds no encoded images, but {batch.column(column).type}")
        if array.null_count:
            raise BenchError(f"{path}: {array.null_count} rows of {column} hold no bytes of an image, at most its path")
        _, bounds, data = array.buffers()  # validity, offsets, values: Arrow's layout of binary columns
        width = np.int32 if pa.types.is_binary(array.type) else np.int64
        edges = np.frombuffer(bounds, width)[array.offset : array.offset + len(array) + 1].astype(np.int64)
        # compressed values are unpacked into memory of their own, outside the mapped file
        if data is None or not 0 <= data.address - whole.address < whole.size:
            raise BenchError(f"{path}: the images are compressed; write the table without compression")
        offsets.append(edges[:-1] + (data.address - whole.address))
        sizes.append(np.diff(edges))
    return np.concatenate(offsets), np.concatenate(sizes)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{path}: {error}") from None
