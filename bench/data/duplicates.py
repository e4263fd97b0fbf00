"""Pictures that are in two splits, or twice in one: the same pixels, or nearly the same to the eye.

Nearly the same: the signs of the differences between neighbouring cells of an 8 x 9 grey thumbnail (a difference
hash, 64 bits) agree but for a few bits, and the cells of a 16 x 16 one differ by a few grey levels on average. That
finds pictures scaled or encoded anew; not those cropped, mirrored or turned.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image

from bench.config.stage import digest
from bench.data.scan_progress import counter
from bench.data.source import Source
from bench.data.splits import root_of
from bench.errors import BenchError
from bench.files import cache_folder, write_atomic

HASH_SIDE, THUMB_SIDE = 8, 16  # cells
BITS = HASH_SIDE * HASH_SIDE
GREY_LEVELS = 8.0  # mean difference of two thumbnails, of 255, up to which pictures count as the same
PAIRS_AT_ONCE = 1 << 21  # that are compared in one go: some 100 MB
CHUNK = 64  # pictures that one thread takes at a time
EXACT = 16  # bytes of a hash over pixels
SET_IN_16 = np.array([bin(word).count("1") for word in range(1 << 16)], np.uint8)  # bits that are set in 16


class Looks(NamedTuple):
    """What N pictures look like: hash over their pixels (N, 16) uint8, difference hash (N,) uint64, thumbnail
    (N, 256) uint8."""

    pixels: np.ndarray
    hashes: np.ndarray
    thumbs: np.ndarray


class Pair(NamedTuple):
    """Two pictures that are the same: numbers of images, and in how many bits their hashes differ."""

    left: int
    right: int
    exact: bool
    bits: int


def looks(source: Source) -> Looks:
    """What every picture of a split looks like; each is decoded once, in parallel, and the outcome is kept."""
    store = cache_folder() / "looks" / f"{digest([source.identity(), root_of(source), HASH_SIDE, THUMB_SIDE])}.npz"
    if store.exists():
        try:
            with np.load(store, allow_pickle=False) as kept:
                return Looks(*(kept[name] for name in Looks._fields))
        except (OSError, ValueError, KeyError):
            store.unlink(missing_ok=True)  # damaged; it can be made again
    found = _look_at_all(source)
    buffer = io.BytesIO()
    np.savez(buffer, **found._asdict())
    write_atomic(store, buffer.getvalue(), durable=False)
    return found


def _look_at_all(source: Source) -> Looks:
    """Raises BenchError for a split without pictures, and for one that cannot be decoded."""
    if not len(source):
        raise BenchError(f"{source.dataset}/{source.split} has no pictures")
    source[0]  # what a source does once, it does before there are many threads
    chunks = [range(start, min(start + CHUNK, len(source))) for start in range(0, len(source), CHUNK)]
    found = Looks(
        np.empty((len(source), EXACT), np.uint8),
        np.empty(len(source), np.uint64),
        np.empty((len(source), THUMB_SIDE * THUMB_SIDE), np.uint8),
    )
    told = f"looking at {source.dataset}/{source.split}"
    with ThreadPoolExecutor(os.cpu_count()) as threads, counter(told, len(source)) as count:
        seen = threads.map(lambda chunk: [look(source[index]["image"]) for index in chunk], chunks)
        for chunk, part in zip(chunks, seen, strict=True):
            for column, values in zip(found, zip(*part, strict=True), strict=True):
                column[chunk.start : chunk.stop] = np.stack(values)
            count.advance(len(part))
    return found


def look(picture: Image.Image) -> tuple[np.ndarray, np.uint64, np.ndarray]:
    """One picture's row of `Looks`."""
    pixels = hashlib.blake2b(f"{picture.mode} {picture.size} ".encode() + picture.tobytes(), digest_size=EXACT)
    grey = picture.convert("L")
    cells = np.asarray(grey.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), np.int16)
    bits = np.packbits(cells[:, 1:] > cells[:, :-1]).view(np.uint64)[0]
    thumb = np.asarray(grey.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX), np.uint8)
    return np.frombuffer(pixels.digest(), np.uint8), bits, thumb.ravel()


def pairs(left: Looks, right: Looks | None, bits: int) -> list[Pair]:
    """Pictures that are in both, or twice in `left` where `right` is None; exact ones first, then by nearness.

    bits: how many of the 64 may differ. The search misses no pair: hashes that differ in so many bits agree in at
    least one of bits + 1 bands.
    """
    if not 0 <= bits <= 12:
        raise BenchError(f"--bits {bits}: give a number from 0 to 12; at more, different pictures look the same")
    other = left if right is None else right
    exact = set(_exact(left, other, within=right is None))
    near = {(i, j): d for i, j, d in _near(left, other, bits, within=right is None) if (i, j) not in exact}
    found = [Pair(i, j, True, 0) for i, j in sorted(exact)]
    return found + [Pair(i, j, False, d) for (i, j), d in sorted(near.items(), key=lambda item: (item[1], item[0]))]


def _exact(left: Looks, right: Looks, within: bool) -> Iterator[tuple[int, int]]:
    by_pixels = defaultdict(list)
    for index, row in enumerate(left.pixels):
        by_pixels[row.tobytes()].append(index)
    for second, row in enumerate(right.pixels):
        yield from ((first, second) for first in by_pixels.get(row.tobytes(), ()) if not within or first < second)


def _near(left: Looks, right: Looks, bits: int, within: bool) -> Iterator[tuple[int, int, int]]:
    for shift, width in _bands(bits + 1):
        mask = np.uint64((1 << width) - 1)
        ours, theirs = ((looks.hashes >> np.uint64(shift)) & mask for looks in (left, right))
        for i, j in _sharing(ours, theirs):
            apart = _bits_set(left.hashes[i] ^ right.hashes[j])
            kept = (apart <= bits) & ((i < j) if within else True)
            i, j, apart = i[kept], j[kept], apart[kept]
            alike = _differences(left.thumbs[i], right.thumbs[j]) <= GREY_LEVELS
            yield from zip(i[alike].tolist(), j[alike].tolist(), apart[alike].tolist(), strict=True)


def _bands(number: int) -> list[tuple[int, int]]:
    """(first bit, bits) of so many bands that make up the hash."""
    edges = [round(band * BITS / number) for band in range(number + 1)]
    return [(start, end - start) for start, end in pairwise(edges)]


def _sharing(ours: np.ndarray, theirs: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All (i, j) with ours[i] == theirs[j], in parts."""
    order = np.argsort(theirs, kind="stable")
    keys = theirs[order]
    first, last = np.searchsorted(keys, ours, "left"), np.searchsorted(keys, ours, "right")
    counts = last - first
    ends = np.cumsum(counts)
    start = 0
    while start < len(ours):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + PAIRS_AT_ONCE, "right")))
        here = counts[start:stop]
        i = np.repeat(np.arange(start, stop), here)
        within = np.arange(len(i)) - np.repeat(np.cumsum(here) - here, here)
        yield i, order[np.repeat(first[start:stop], here) + within]
        start = stop


def _bits_set(words: np.ndarray) -> np.ndarray:
    return SET_IN_16[words.view(np.uint16).reshape(-1, 4)].sum(axis=1)


def _differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mean difference of grey levels, thumbnail by thumbnail."""
    return np.abs(first.astype(np.int16) - second.astype(np.int16)).mean(axis=1)
