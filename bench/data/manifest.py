"""Which bytes a split holds: path, size and hash of every file, and one root hash over them all.

A file is read once. Its hash is cached by path, size and time of change, so that asking again costs no more than a
stat of each file. The root hash depends neither on where the files are nor on their times.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bench.config.stage import digest
from bench.data.scan_progress import Counter, counter
from bench.errors import BenchError
from bench.files import append_lines, cache_folder, write_atomic

THREADS = 16  # more than cores: reading waits for the disk, and hashlib releases the GIL
BATCH_FILES, BATCH_BYTES = 256, 64 << 20  # that one thread reads before it reports
BLOCK = 1 << 20  # bytes read at a time
DIGITS = 32  # of a hash, hexadecimal
UTF8 = ("utf-8", "surrogateescape")  # a file name is bytes, which need not be UTF-8
SAVE_EVERY_SECONDS = 10.0  # what an interrupted run loses at most

log = logging.getLogger(__name__)


class Piece(NamedTuple):
    """Bytes that a split is read from: a whole file, or a range of one, such as a member of a tar shard.

    id: unique in its split and the same on every machine, like the path below the split's folder. changed: when
    the file last changed, in ns. image: number of the image that is read from it, -1 when any image may be.
    """

    id: str
    path: str
    size: int
    changed: int
    offset: int = 0
    image: int = -1


class Manifest(NamedTuple):
    """The root hash of a split's bytes, and how many files and bytes it covers."""

    root: str
    files: int
    bytes: int


def whole_file(path: Path, name: str, image: int = -1) -> Piece:
    """A whole file as a piece; BenchError when it is not there."""
    try:
        status = path.stat()
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror or error}") from None
    return Piece(name, str(path), status.st_size, status.st_mtime_ns, image=image)


def manifest(pieces: Sequence[Piece], where: str, anew: bool = False) -> Manifest:
    """The root hash of a split, from the cache if all pieces are as they were.

    where: data set and folder, which name its cache.
    anew: read all pieces, and warn when bytes changed while size and time of change did not.
    Raises BenchError for a file that cannot be read or changes meanwhile, and for two pieces of one id.
    """
    stamp = hashlib.blake2b(digest_size=DIGITS // 2)  # of the listing: no file is read for it
    for part in _parts(pieces):
        stamp.update("".join(f"{p.id}\t{p.size}\t{p.changed}\t{p.offset}\t{p.path}\n" for p in part).encode(*UTF8))
    store = cache_folder() / "manifests" / f"{stamp.hexdigest()}.root"
    root = store.read_bytes().decode("ascii", "replace") if store.exists() else ""
    if anew or len(root) != DIGITS:
        _refuse_doubles(pieces)
        before, root = root, root_hash(pieces, hashes(pieces, where, anew))
        if before not in ("", root):
            log.warning("%s: the bytes differ from those read before, though no size and time of change does", where)
        write_atomic(store, root, durable=False)
    return Manifest(root, len(pieces), sum(piece.size for piece in pieces))


def listing(pieces: Sequence[Piece], where: str) -> list[str]:
    """What the root hash is made of, a line for each piece: hash, size and id, with tabs between, by id."""
    lines = zip(hashes(pieces, where), pieces, strict=True)
    return [f"{hashed}\t{piece.size}\t{piece.id}" for hashed, piece in sorted(lines, key=lambda line: line[1].id)]


def _parts(pieces: Sequence[Piece], length: int = 10_000) -> Iterator[Sequence[Piece]]:
    """The pieces in parts, so that the text of a million is never in memory at once."""
    return (pieces[start : start + length] for start in range(0, len(pieces), length))


def hashes(pieces: Sequence[Piece], where: str, anew: bool = False) -> list[str]:
    """The hash of each piece, from the cache if it is there; anew: read from the files in any case."""
    store = cache_folder() / "manifests" / f"{digest(where)}.tsv"
    cached = {} if anew else _read_cache(store)
    new = [piece for piece in pieces if _cache_key(piece) not in cached]
    if new:
        cached |= _hash_all(new, store)
    return [cached[_cache_key(piece)] for piece in pieces]


def _cache_key(piece: Piece) -> str:
    """What must not have changed for a cached hash to hold."""
    return f"{piece.size}\t{piece.changed}\t{piece.offset}\t{piece.path}"


def root_hash(pieces: Sequence[Piece], hashes_of_pieces: Sequence[str]) -> str:
    """One hash over (id, size, hash) of all pieces, whatever their order: 32 hexadecimal digits."""
    rows = zip(pieces, hashes_of_pieces, strict=True)
    lines = sorted(f"{piece.id}\0{piece.size}\0{hashed}\n" for piece, hashed in rows)
    return hashlib.blake2b("".join(lines).encode(*UTF8), digest_size=DIGITS // 2).hexdigest()


def _refuse_doubles(pieces: Sequence[Piece]) -> None:
    if len({piece.id for piece in pieces}) == len(pieces):
        return
    ids: set[str] = set()
    for piece in pieces:
        if piece.id in ids:
            raise BenchError(f"{piece.path}: {piece.id!r} occurs twice; a name stands for one image of a split")
        ids.add(piece.id)


def _read_cache(store: Path) -> dict[str, str]:
    """Cache key -> hash; {} without a cache. A line that an interrupted run cut short is skipped."""
    try:
        text = store.read_text(encoding=UTF8[0], errors=UTF8[1])
    except OSError:
        return {}
    lines = (line.partition("\t") for line in text.split("\n"))
    return {key: hashed for hashed, _, key in lines if len(hashed) == DIGITS}


def _hash_all(pieces: Sequence[Piece], store: Path) -> dict[str, str]:
    """Cache key -> hash of every piece; saved to the cache every few seconds, so that an interrupted run resumes."""
    hashed: dict[str, str] = {}
    unsaved: dict[str, str] = {}
    last = time.monotonic()
    total = sum(piece.size for piece in pieces)
    with ThreadPoolExecutor(THREADS) as threads, counter("reading files", len(pieces), total) as count:
        try:
            for part in _hash_batches(threads, list(_batches(pieces)), count):
                hashed |= part
                unsaved |= part
                if time.monotonic() - last > SAVE_EVERY_SECONDS:
                    _append_cache(store, unsaved)
                    unsaved, last = {}, time.monotonic()
        finally:
            threads.shutdown(cancel_futures=True)  # after an error the batches still waiting are not read
            _append_cache(store, unsaved)
    return hashed


def _hash_batches(threads: ThreadPoolExecutor, batches: list[list[Piece]], count: Counter) -> Iterator[dict[str, str]]:
    for batch, hashed in zip(batches, threads.map(_hash_batch, batches), strict=True):
        count.advance(len(batch), sum(piece.size for piece in batch))
        yield hashed


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """The pieces in their order, in batches that one thread reads."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += piece.size
        if len(batch) >= BATCH_FILES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _hash_batch(batch: Sequence[Piece]) -> dict[str, str]:
    return {_cache_key(piece): hash_piece(piece) for piece in batch}


def hash_piece(piece: Piece) -> str:
    """blake2b of the bytes of a piece, 32 hexadecimal digits."""
    hashed = hashlib.blake2b(digest_size=DIGITS // 2)
    remaining = piece.size
    try:
        with open(piece.path, "rb", buffering=0) as file:
            if piece.offset:
                file.seek(piece.offset)
            while remaining and (block := file.read(min(remaining, BLOCK))):
                hashed.update(block)
                remaining -= len(block)
    except OSError as error:
        raise BenchError(f"{piece.path}: {error.strerror or error}") from None
    if remaining:
        raise BenchError(f"{piece.path} was {piece.size:,} bytes when it was listed and has changed; run again")
    return hashed.hexdigest()


def _append_cache(store: Path, hashed: dict[str, str]) -> None:
    """Add hashes to the cache, except of a path with a line break: that file is read again next time."""
    lines = [f"{value}\t{key}" for key, value in hashed.items() if _is_line(key)]
    if not lines:
        return
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        append_lines(store, lines)
    except (OSError, BenchError) as error:
        raise BenchError(f"cannot save the hashes of files ({error}); set BENCH_CACHE to a folder") from None


def _is_line(text: str) -> bool:
    return "\n" not in text and text.encode(errors="replace") == text.encode(*UTF8)
