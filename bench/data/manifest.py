"""Which bytes a split holds: path, size and hash of every file, and one root hash over them all.

A file is read once. Its hash is kept in the cache, by path, size and time of change, so that asking again costs
no more than looking at the files. The root hash does not depend on where the files lie nor on their times.
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

THREADS = 16  # reading waits for the disk more than for the processor
BATCH_FILES, BATCH_BYTES = 256, 64 << 20  # that one thread reads before it reports
BLOCK = 1 << 20  # bytes read at a time
DIGITS = 32  # of a hash, hexadecimal
UTF8 = ("utf-8", "surrogateescape")  # file names are bytes
KEPT_EVERY_SECONDS = 10.0  # what a stopped reading loses at most

log = logging.getLogger(__name__)


class Piece(NamedTuple):
    """Bytes that a split is read from: a whole file, or a range of one, such as a member of a tar shard.

    id: unique in its split and the same on every machine, like the path below the split's folder. changed: when
    the file last changed, in ns. index: the image that is made of it, -1 when any image may be.
    """

    id: str
    path: str
    size: int
    changed: int
    offset: int = 0
    index: int = -1  # type: ignore[assignment]  # hides a method of tuples that nobody wants here

    @property
    def kept(self) -> str:
        """How the cache knows these bytes."""
        return f"{self.size}\t{self.changed}\t{self.offset}\t{self.path}"


class Manifest(NamedTuple):
    """The root hash of a split's bytes, and how much it was made of."""

    root: str
    files: int
    bytes: int


def whole_file(path: Path, name: str, index: int = -1) -> Piece:
    """The piece that is a file; BenchError when it is not there."""
    try:
        status = path.stat()
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror or error}") from None
    return Piece(name, str(path), status.st_size, status.st_mtime_ns, index=index)


def manifest(pieces: Sequence[Piece], where: str, anew: bool = False) -> Manifest:
    """Hash every piece whose hash is not known yet. `where` names the data set and its folder in the cache.

    anew: read all of them, and warn when bytes changed while size and time of change did not.
    Raises BenchError for a file that cannot be read or changes meanwhile, and for two pieces of one id.
    """
    seen = hashlib.blake2b(digest_size=DIGITS // 2)
    for part in _parts(pieces):
        seen.update("".join(f"{p.id}\t{p.size}\t{p.changed}\t{p.offset}\t{p.path}\n" for p in part).encode(*UTF8))
    kept = cache_folder() / "manifests" / f"{seen.hexdigest()}.root"
    root = kept.read_bytes().decode("ascii", "replace") if kept.exists() else ""
    if anew or len(root) != DIGITS:
        _refuse_doubles(pieces)
        before, root = root, root_hash(pieces, hashes(pieces, where, anew))
        if before not in ("", root):
            log.warning("%s: not the bytes that were read before, though no size and time of change differs", where)
        write_atomic(kept, root, durable=False)
    return Manifest(root, len(pieces), sum(piece.size for piece in pieces))


def listing(pieces: Sequence[Piece], where: str) -> list[str]:
    """What the root hash is made of, a line for each piece: hash, size and id, with tabs between, by id."""
    lines = zip(hashes(pieces, where), pieces, strict=True)
    return [f"{found}\t{piece.size}\t{piece.id}" for found, piece in sorted(lines, key=lambda line: line[1].id)]


def _parts(pieces: Sequence[Piece], length: int = 10_000) -> Iterator[Sequence[Piece]]:
    return (pieces[start : start + length] for start in range(0, len(pieces), length))


def hashes(pieces: Sequence[Piece], where: str, anew: bool = False) -> list[str]:
    """The hash of each piece, from the cache where it is known, unless all are to be read anew."""
    store = cache_folder() / "manifests" / f"{digest(where)}.tsv"
    known = {} if anew else _known(store)
    new = [piece for piece in pieces if piece.kept not in known]
    if new:
        known |= _hash_all(new, store)
    return [known[piece.kept] for piece in pieces]


def root_hash(pieces: Sequence[Piece], found: Sequence[str]) -> str:
    """One hash over (id, size, hash) of all pieces, whatever their order: 32 hexadecimal digits."""
    lines = sorted(f"{piece.id}\0{piece.size}\0{hashed}\n" for piece, hashed in zip(pieces, found, strict=True))
    return hashlib.blake2b("".join(lines).encode(*UTF8), digest_size=DIGITS // 2).hexdigest()


def _refuse_doubles(pieces: Sequence[Piece]) -> None:
    if len({piece.id for piece in pieces}) == len(pieces):
        return
    seen: set[str] = set()
    for piece in pieces:
        if piece.id in seen:
            raise BenchError(f"{piece.path}: {piece.id!r} is there twice; a name stands for one picture of a split")
        seen.add(piece.id)


def _known(store: Path) -> dict[str, str]:
    """Hashes found earlier; a missing cache is as good as none, and a line cut short is passed over."""
    try:
        text = store.read_text(encoding=UTF8[0], errors=UTF8[1])
    except OSError:
        return {}
    lines = (line.partition("\t") for line in text.split("\n"))
    return {kept: found for found, _, kept in lines if len(found) == DIGITS}


def _hash_all(pieces: Sequence[Piece], store: Path) -> dict[str, str]:
    """The hash of every piece, by `Piece.kept`; kept in the cache every few seconds, so a stopped reading goes on."""
    found: dict[str, str] = {}
    waiting: dict[str, str] = {}
    last = time.monotonic()
    total = sum(piece.size for piece in pieces)
    with ThreadPoolExecutor(THREADS) as threads, counter("reading files", len(pieces), total) as count:
        try:
            for some in _in_turn(threads, list(_batches(pieces)), count):
                found |= some
                waiting |= some
                if time.monotonic() - last > KEPT_EVERY_SECONDS:
                    _keep(store, waiting)
                    waiting, last = {}, time.monotonic()
        finally:
            threads.shutdown(cancel_futures=True)
            _keep(store, waiting)
    return found


def _in_turn(threads: ThreadPoolExecutor, batches: list[list[Piece]], count: Counter) -> Iterator[dict[str, str]]:
    for batch, found in zip(batches, threads.map(_hash_batch, batches), strict=True):
        count.advance(len(batch), sum(piece.size for piece in batch))
        yield found


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces in their order, in parts that one thread takes at a time."""
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
    return {piece.kept: hash_piece(piece) for piece in batch}


def hash_piece(piece: Piece) -> str:
    """blake2b of the bytes of a piece, 32 hexadecimal digits."""
    hashed = hashlib.blake2b(digest_size=DIGITS // 2)
    left = piece.size
    try:
        with open(piece.path, "rb", buffering=0) as file:
            if piece.offset:
                file.seek(piece.offset)
            while left and (block := file.read(min(left, BLOCK))):
                hashed.update(block)
                left -= len(block)
    except OSError as error:
        raise BenchError(f"{piece.path}: {error.strerror or error}") from None
    if left:
        raise BenchError(f"{piece.path} was {piece.size:,} bytes when it was listed and has changed; run again")
    return hashed.hexdigest()


def _keep(store: Path, found: dict[str, str]) -> None:
    """Add to the cache. A file whose path is no line of text is read again next time."""
    lines = [f"{hashed}\t{kept}" for kept, hashed in found.items() if _is_line(kept)]
    if not lines:
        return
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        append_lines(store, lines)
    except (OSError, BenchError) as error:
        raise BenchError(f"cannot keep the hashes of files ({error}); set BENCH_CACHE to a folder") from None


def _is_line(text: str) -> bool:
    return "\n" not in text and text.encode(errors="replace") == text.encode(*UTF8)
