"""WebDataset tar shards, read at random: an index of all members is made once, and nothing is unpacked.

A sample is the members with the same name up to the first dot: KEY.jpg, and KEY.cls or KEY.json for its label.
The index holds for as long as the shards keep their sizes and times of change.
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
from bench.data.readers.index import Index, files_below, some
from bench.data.readers.wordnet import Classes, class_in, not_contradicted, picture_id
from bench.data.scan_progress import counter
from bench.errors import BenchError
from bench.files import cache_folder, write_atomic

VERSION = 1  # of the kept index; raise when it would hold something else
SHARDS_OF_A_PROCESS = 8
KINDS = tuple(suffix[1:] for suffix in SUFFIXES)  # of pictures
LABELS = ("cls", "json")  # the members that tell a label, the first wins
END = 1024  # zero bytes that end a tar file


class Member(NamedTuple):
    """A sample: its key, what its label member says, and where its picture lies in the shard."""

    key: str
    label: str
    offset: int
    size: int


def sharded(shards: Sequence[Path], expected: Classes) -> Index:
    """The pictures of tar shards. BenchError names a shard that is cut, and a sample without picture or label."""
    found = _kept(shards)
    keys = [key.decode() for key in found["keys"].tolist()]
    where = [str(shard) for shard in shards]
    told = zip(keys, found["labels"].tolist(), found["files"].tolist(), strict=True)
    rank = expected.rank
    labels = [_label(key, label.decode(), expected, rank, where[file]) for key, label, file in told]
    return Index(
        ids=np.array([picture_id(key).encode() for key in keys], "S"),
        labels=np.array(labels, np.int32),
        files=found["files"],
        offsets=found["offsets"],
        sizes=found["sizes"],
        paths=np.array([path.encode() for path in where], "S"),
        changed=np.array([shard.stat().st_mtime_ns for shard in shards], np.int64),
    )


def is_archive_of_archives(shard: Path) -> bool:
    """Whether a tar file is one of the originals of ILSVRC 2012, which hold tars or a flat split."""
    return shard.name.startswith("ILSVRC2012_")


def _kept(shards: Sequence[Path]) -> dict[str, np.ndarray]:
    """The index from the cache, or made anew."""
    stamps = [[str(shard), shard.stat().st_size, shard.stat().st_mtime_ns] for shard in shards]
    store = cache_folder() / "shards" / f"{digest([VERSION, stamps])}.npz"
    try:
        with np.load(store, allow_pickle=False) as kept:
            return dict(kept)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # none yet, or damaged: it can be made again
        made = _scan(shards)
    content = io.BytesIO()
    np.savez(content, **made)  # type: ignore[arg-type]
    try:
        write_atomic(store, content.getvalue(), durable=False)
    except BenchError as error:
        raise BenchError(f"cannot keep the index of the shards ({error}); set BENCH_CACHE to a folder") from None
    return made


def _scan(shards: Sequence[Path]) -> dict[str, np.ndarray]:
    """Every sample of every shard, in their order."""
    found = []
    with counter("indexing shards", len(shards)) as count:
        for part in _each(shards):
            found.append(part)
            count.advance(1)
    members = [member for each in found for member in each]
    return {
        "keys": np.array([member.key.encode() for member in members], "S"),
        "labels": np.array([member.label.encode() for member in members], "S"),
        "offsets": np.array([member.offset for member in members], np.int64),
        "sizes": np.array([member.size for member in members], np.int64),
        "files": np.repeat(np.arange(len(shards), dtype=np.int32), [len(each) for each in found]),
    }


def _each(shards: Sequence[Path]) -> Iterator[list[Member]]:
    """The samples of each shard; several processes look at many shards, because reading headers is work."""
    processes = min(os.cpu_count() or 1, len(shards) // SHARDS_OF_A_PROCESS)
    if processes < 2:
        yield from map(samples, shards)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:  # a fork would copy our threads
        yield from pool.map(samples, shards)


def samples(shard: Path) -> list[Member]:
    """The samples of one shard, in its order."""
    pictures: dict[str, tarfile.TarInfo] = {}
    labels: dict[tuple[str, str], str] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                key, kind = _parts(member.name)
                if not member.isfile() or not key or key.endswith("/"):
                    continue  # a folder, or a hidden file such as ._000.jpg, left by another system
                if kind.endswith(KINDS):
                    _once(key, pictures, shard)
                    pictures[key] = member
                elif kind in LABELS:
                    labels[key, kind] = _told(archive, member, shard)
            _is_whole(archive, shard)
    except (tarfile.TarError, EOFError) as error:
        raise BenchError(f"{shard} is damaged or cut short ({error}); copy it again") from None
    except OSError as error:
        raise BenchError(f"{shard}: {error.strerror or error}") from None
    return [_sample(key, member, labels, shard) for key, member in pictures.items()]


def _sample(key: str, member: tarfile.TarInfo, labels: dict[tuple[str, str], str], shard: Path) -> Member:
    told = next((labels[key, kind] for kind in LABELS if labels.get((key, kind))), "")
    if not told and not class_in(key):
        raise BenchError(f"{shard}: the sample {key} has no label: no {key}.cls, no label in {key}.json")
    return Member(key, told, member.offset_data, member.size)


def _parts(name: str) -> tuple[str, str]:
    """Key and kind of a member: ('a/b', 'jpg') of ./a/b.jpg, as WebDataset divides names."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    key, _, kind = file.partition(".")
    return folder + slash + key, kind.lower()


def _once(key: str, pictures: dict[str, tarfile.TarInfo], shard: Path) -> None:
    if key in pictures:
        raise BenchError(f"{shard}: the key {key} is there twice; a key stands for one sample")


def _told(archive: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> str:
    """What a label member says; '' for JSON that tells no label."""
    content = archive.extractfile(member)
    assert content is not None, "only files are asked for"
    data = content.read()
    if len(data) < member.size:
        raise BenchError(f"{shard} is cut short in {member.name}; copy it again")
    try:
        text = data.decode().strip()
        return str(json.loads(text).get("label", "")) if member.name.endswith(".json") else text
    except (ValueError, AttributeError):
        raise BenchError(f"{shard}: {member.name} holds no label that can be read") from None


def _is_whole(archive: tarfile.TarFile, shard: Path) -> None:
    """BenchError unless the zero blocks that end a tar file are there: a file cut between two members lacks them."""
    with shard.open("rb") as file:
        file.seek(archive.offset)  # where reading ended
        if file.read(END) != bytes(END):
            raise BenchError(f"{shard} is cut short: the blocks that end a tar file are missing; copy it again")


def _label(key: str, label: str, expected: Classes, rank: dict[str, int], shard: str) -> int:
    """The number of a sample's class, which its key must not contradict."""
    told = class_in(key)
    if label.isdigit() and int(label) < len(expected.ids):
        number = int(label)
    elif label in rank or (not label and told in rank):
        number = rank[label or told]
    else:
        raise BenchError(
            f"{shard}: the label {label or told!r} of {key} is none of the {len(expected.ids):,} of {expected.title}"
        )
    not_contradicted(key, number, expected, shard)
    return number


def shards_below(root: Path) -> list[Path]:
    """The tar files below a folder, in order; BenchError for compressed ones, which cannot be read at random."""
    found = files_below(root, (".tar", ".tgz", ".tar.gz"))
    packed = [path.name for path in found if path.suffix != ".tar"]
    if packed:
        raise BenchError(f"{root}: {some(packed)}: compressed shards cannot be read at random; unpack them with gunzip")
    return found
