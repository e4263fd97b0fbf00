"""WebDataset tar shards with random access: all members are indexed once, and nothing is unpacked.

A sample is the members with the same name up to the first dot: KEY.jpg, and KEY.cls or KEY.json for its label.
The cached index holds while the shards keep their sizes and times of change.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.config.stage import digest
from bench.data.readers.image_files import SUFFIXES
from bench.data.readers.index import Index, files_below
from bench.data.readers.wordnet import Classes, check_label, class_in_name, image_id
from bench.data.scan_progress import counter
from bench.errors import BenchError, listed_up_to
from bench.files import cache_folder, write_atomic

VERSION = 1  # of the cached index; raise it when the index would hold something else
SHARDS_OF_A_PROCESS = 8  # at least: fewer are not worth the start of a process
KINDS = tuple(suffix[1:] for suffix in SUFFIXES)  # of images
LABELS = ("cls", "json")  # the members that may hold the label; the first one wins
END = 1024  # zero bytes that end a tar file


class Member(NamedTuple):
    """A sample: its key, the text of its label member, and where its image is in the shard."""

    key: str
    label: str
    offset: int
    size: int


def index_shards(shards: Sequence[Path], expected: Classes) -> Index:
    """The index of tar shards. BenchError names a truncated shard, and a sample without a label."""
    members = _cached_members(shards)
    keys = [key.decode() for key in members["keys"].tolist()]
    where = [str(shard) for shard in shards]
    samples = zip(keys, members["labels"].tolist(), members["files"].tolist(), strict=True)
    rank = expected.rank  # once: it is a dictionary that is built anew at each use
    labels = [_class_number(key, label.decode(), expected, rank, where[file]) for key, label, file in samples]
    return Index(
        ids=np.array([image_id(key).encode() for key in keys], "S"),
        labels=np.array(labels, np.int32),
        files=members["files"],
        offsets=members["offsets"],
        sizes=members["sizes"],
        paths=np.array([path.encode() for path in where], "S"),
        changed=np.array([shard.stat().st_mtime_ns for shard in shards], np.int64),
    )


def is_original_archive(shard: Path) -> bool:
    """Whether a tar file is an original archive of ILSVRC 2012, which holds tars or a flat split."""
    return shard.name.startswith("ILSVRC2012_")


def _cached_members(shards: Sequence[Path]) -> dict[str, np.ndarray]:
    """The members of all shards, as columns: from the cache, or read and cached."""
    stamps = [[str(shard), shard.stat().st_size, shard.stat().st_mtime_ns] for shard in shards]
    store = cache_folder() / "shards" / f"{digest([VERSION, stamps])}.npz"
    try:
        with np.load(store, allow_pickle=False) as cached:
            return dict(cached)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # none yet, or damaged: it can be made again
        members = _scan(shards)
    content = io.BytesIO()
    np.savez(content, **members)  # type: ignore[arg-type]
    try:
        write_atomic(store, content.getvalue(), durable=False)
    except BenchError as error:
        raise BenchError(f"cannot save the index of the shards ({error}); set BENCH_CACHE to a folder") from None
    return members


def _scan(shards: Sequence[Path]) -> dict[str, np.ndarray]:
    """Every sample of every shard, in their order, as columns."""
    samples_of_shards = []
    with counter("indexing shards", len(shards)) as count:
        for samples in _each_shard(shards):
            samples_of_shards.append(samples)
            count.advance(1)
    members = [member for samples in samples_of_shards for member in samples]
    return {
        "keys": np.array([member.key.encode() for member in members], "S"),
        "labels": np.array([member.label.encode() for member in members], "S"),
        "offsets": np.array([member.offset for member in members], np.int64),
        "sizes": np.array([member.size for member in members], np.int64),
        "files": np.repeat(np.arange(len(shards), dtype=np.int32), [len(samples) for samples in samples_of_shards]),
    }


def _each_shard(shards: Sequence[Path]) -> Iterator[list[Member]]:
    """The samples of each shard; many shards are read by several processes, because parsing headers takes CPU time."""
    processes = min(os.cpu_count() or 1, len(shards) // SHARDS_OF_A_PROCESS)
    if processes < 2:
        yield from map(read_samples, shards)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:  # a fork would copy our threads
        yield from pool.map(read_samples, shards)


def read_samples(shard: Path) -> list[Member]:
    """The samples of one shard, in its order."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[tuple[str, str], str] = {}
    try:
        with tarfile.open(shard, "r:") as archive:  # "r:": no compression, so that offsets are those in the file
            for member in archive:
                key, kind = _parts(member.name)
                if not member.isfile() or not key or key.endswith("/"):
                    continue  # a folder, or a hidden file such as ._000.jpg, left by another system
                if kind.endswith(KINDS):
                    if key in images:
                        raise BenchError(f"{shard}: the key {key} occurs twice; a key stands for one sample")
                    images[key] = member
                elif kind in LABELS:
                    labels[key, kind] = _read_label(archive, member, shard)
            _check_end(archive, shard)
    except (tarfile.TarError, EOFError) as error:
        raise BenchError(f"{shard} is damaged or cut short ({error}); copy it again") from None
    except OSError as error:
        raise BenchError(f"{shard}: {error.strerror or error}") from None
    return [_sample(key, member, labels, shard) for key, member in images.items()]


def _sample(key: str, member: tarfile.TarInfo, labels: dict[tuple[str, str], str], shard: Path) -> Member:
    label = next((labels[key, kind] for kind in LABELS if labels.get((key, kind))), "")
    if not label and not class_in_name(key):
        raise BenchError(f"{shard}: the sample {key} has no label: no {key}.cls, no label in {key}.json")
    return Member(key, label, member.offset_data, member.size)


def _parts(name: str) -> tuple[str, str]:
    """Key and kind of a member, as WebDataset splits its name: ('a/b', 'jpg') for ./a/b.jpg."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    key, _, kind = file.partition(".")
    return folder + slash + key, kind.lower()


def _read_label(archive: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> str:
    """The text of a label member; '' for JSON without a label."""
    content = archive.extractfile(member)
    assert content is not None, "called for files only"
    data = content.read()
    if len(data) < member.size:
        raise BenchError(f"{shard} is cut short in {member.name}; copy it again")
    try:
        text = data.decode().strip()
        return str(json.loads(text).get("label", "")) if member.name.endswith(".json") else text
    except (ValueError, AttributeError):
        raise BenchError(f"{shard}: {member.name} holds no label that can be read") from None


def _check_end(archive: tarfile.TarFile, shard: Path) -> None:
    """Raise BenchError unless the zero blocks that end a tar file are there; a truncated file lacks them."""
    with shard.open("rb") as file:
        file.seek(archive.offset)  # where reading ended
        if file.read(END) != bytes(END):
            raise BenchError(f"{shard} is cut short: the blocks that end a tar file are missing; copy it again")


def _class_number(key: str, label: str, expected: Classes, rank: dict[str, int], shard: str) -> int:
    """The number of a sample's class, from its label or else its key, which must not contradict each other."""
    named_class = class_in_name(key)
    if label.isdigit() and int(label) < len(expected.ids):
        number = int(label)
    elif label in rank or (not label and named_class in rank):
        number = rank[label or named_class]
    else:
        classes = f"the {len(expected.ids):,} of {expected.title}"
        raise BenchError(f"{shard}: the label {label or named_class!r} of {key} is none of {classes}")
    check_label(key, number, expected, shard)
    return number


def find_shards(root: Path) -> list[Path]:
    """The tar files below a folder, in order; BenchError for compressed ones, which cannot be read at random."""
    paths = files_below(root, (".tar", ".tgz", ".tar.gz"))
    packed = [path.name for path in paths if path.suffix != ".tar"]
    if packed:
        raise BenchError(
            f"{root}: {listed_up_to(packed)}: compressed shards cannot be read at random; unpack them with gunzip"
        )
    return paths
