"""Images that are in two splits, or twice in one: the same pixels, or nearly the same to the eye.

Nearly the same: the difference hashes (64 bits: the signs of the differences between neighbouring cells of an 8 x 9
grey thumbnail) agree but for a few bits, and 16 x 16 grey thumbnails differ by a few grey levels on average. This
finds images that were scaled or re-encoded; not those cropped, mirrored or rotated.
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
GREY_LEVELS = 8.0  # mean difference of two thumbnails, of 255, up to which images count as the same
PAIRS_AT_ONCE = 1 << 21  # compared in one step: some 100 MB
CHUNK = 64  # images that one thread takes at a time
PIXEL_HASH_BYTES = 16
ONES_IN_16_BITS = np.array([bin(word).count("1") for word in range(1 << 16)], np.uint8)  # a lookup table


class Fingerprints(NamedTuple):
    """Hashes and thumbnails of N images, a row each."""

    pixels: np.ndarray  # (N, 16) uint8: hash over mode, size and all pixels
    hashes: np.ndarray  # (N,) uint64: difference hash
    thumbs: np.ndarray  # (N, 256) uint8: grey levels of the 16 x 16 thumbnail


class Pair(NamedTuple):
    """Two images that count as the same: their numbers, and in how many bits their difference hashes differ."""

    left: int
    right: int
    exact: bool
    bits: int


def fingerprints(source: Source) -> Fingerprints:
    """The fingerprints of all images of a split; each is decoded once, in parallel, and the result is cached."""
    store = cache_folder() / "looks" / f"{digest([source.identity(), root_of(source), HASH_SIDE, THUMB_SIDE])}.npz"
    if store.exists():
        try:
            with np.load(store, allow_pickle=False) as cached:
                return Fingerprints(*(cached[name] for name in Fingerprints._fields))
        except (OSError, ValueError, KeyError):
            store.unlink(missing_ok=True)  # damaged; it can be made again
    prints = _fingerprint_all(source)
    buffer = io.BytesIO()
    np.savez(buffer, **prints._asdict())
    write_atomic(store, buffer.getvalue(), durable=False)
    return prints


def _fingerprint_all(source: Source) -> Fingerprints:
    """Raises BenchError for a split without images, and for an image that cannot be decoded."""
    if not len(source):
        raise BenchError(f"{source.dataset}/{source.split} has no images")
    source[0]  # so that what a source does at its first image (the demo draws all) is not done by every thread
    chunks = [range(start, min(start + CHUNK, len(source))) for start in range(0, len(source), CHUNK)]
    prints = Fingerprints(
        np.empty((len(source), PIXEL_HASH_BYTES), np.uint8),
        np.empty(len(source), np.uint64),
        np.empty((len(source), THUMB_SIDE * THUMB_SIDE), np.uint8),
    )
    title = f"fingerprinting {source.dataset}/{source.split}"
    with ThreadPoolExecutor(os.cpu_count()) as threads, counter(title, len(source)) as count:
        parts = threads.map(lambda chunk: [fingerprint(source[index]["image"]) for index in chunk], chunks)
        for chunk, rows in zip(chunks, parts, strict=True):
            for column, values in zip(prints, zip(*rows, strict=True), strict=True):
                column[chunk.start : chunk.stop] = np.stack(values)
            count.advance(len(rows))
    return prints


def fingerprint(image: Image.Image) -> tuple[np.ndarray, np.uint64, np.ndarray]:
    """One image's row of `Fingerprints`."""
    # mode and size are hashed, too: images of other shape may have the same bytes
    pixels = hashlib.blake2b(f"{image.mode} {image.size} ".encode() + image.tobytes(), digest_size=PIXEL_HASH_BYTES)
    grey = image.convert("L")
    cells = np.asarray(grey.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), np.int16)
    bits = np.packbits(cells[:, 1:] > cells[:, :-1]).view(np.uint64)[0]
    thumb = np.asarray(grey.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX), np.uint8)
    return np.frombuffer(pixels.digest(), np.uint8), bits, thumb.ravel()


def find_pairs(left: Fingerprints, right: Fingerprints | None, bits: int) -> list[Pair]:
    """Images that are in both, or twice in `left` when `right` is None; exact ones first, then by distance.

    bits: how many of the 64 may differ. The search misses no pair: two hashes that differ in at most `bits` bits are
    equal in at least one of bits + 1 bands.
    """
    if not 0 <= bits <= 12:
        raise BenchError(f"--bits {bits}: give a number from 0 to 12; with more, different images count as the same")
    other = left if right is None else right
    exact = set(_exact(left, other, within=right is None))
    near = {(i, j): d for i, j, d in _near(left, other, bits, within=right is None) if (i, j) not in exact}
    exact_pairs = [Pair(i, j, True, 0) for i, j in sorted(exact)]
    return exact_pairs + [
        Pair(i, j, False, d) for (i, j), d in sorted(near.items(), key=lambda item: (item[1], item[0]))
    ]


def _exact(left: Fingerprints, right: Fingerprints, within: bool) -> Iterator[tuple[int, int]]:
    """(i, j) of images with the same pixels; within: both sides are one split, so each pair once."""
    by_pixels = defaultdict(list)
    for index, row in enumerate(left.pixels):
        by_pixels[row.tobytes()].append(index)
    for second, row in enumerate(right.pixels):
        yield from ((first, second) for first in by_pixels.get(row.tobytes(), ()) if not within or first < second)


def _near(left: Fingerprints, right: Fingerprints, bits: int, within: bool) -> Iterator[tuple[int, int, int]]:
    """(i, j, differing bits) of images that are nearly the same; a pair comes once for every band it shares."""
    for shift, width in _bands(bits + 1):
        mask = np.uint64((1 << width) - 1)
        left_keys, right_keys = ((prints.hashes >> np.uint64(shift)) & mask for prints in (left, right))
        for i, j in _equal_keys(left_keys, right_keys):
            distance = _bits_set(left.hashes[i] ^ right.hashes[j])
            near = (distance <= bits) & ((i < j) if within else True)
            i, j, distance = i[near], j[near], distance[near]
            # plain images have few edges and so like hashes: only their grey levels tell them apart
            alike = _mean_difference(left.thumbs[i], right.thumbs[j]) <= GREY_LEVELS
            yield from zip(i[alike].tolist(), j[alike].tolist(), distance[alike].tolist(), strict=True)


def _bands(number: int) -> list[tuple[int, int]]:
    """(first bit, bits) of each of `number` bands that make up the hash."""
    edges = [round(band * BITS / number) for band in range(number + 1)]
    return [(start, end - start) for start, end in pairwise(edges)]


def _equal_keys(left: np.ndarray, right: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All (i, j) with left[i] == right[j], some PAIRS_AT_ONCE at a time."""
    order = np.argsort(right, kind="stable")
    keys = right[order]
    first, last = np.searchsorted(keys, left, "left"), np.searchsorted(keys, left, "right")
    counts = last - first
    ends = np.cumsum(counts)
    start = 0
    while start < len(left):
        before = ends[start - 1] if start else 0
        # at least one row, whose pairs may be more than PAIRS_AT_ONCE
        stop = max(start + 1, int(np.searchsorted(ends, before + PAIRS_AT_ONCE, "right")))
        partners = counts[start:stop]
        i = np.repeat(np.arange(start, stop), partners)
        rank = np.arange(len(i)) - np.repeat(np.cumsum(partners) - partners, partners)  # 0, 1, ... within each i
        yield i, order[np.repeat(first[start:stop], partners) + rank]
        start = stop


def _bits_set(words: np.ndarray) -> np.ndarray:
    """Bits that are 1 in each uint64; numpy has bitwise_count only from 2.0 on."""
    return ONES_IN_16_BITS[words.view(np.uint16).reshape(-1, 4)].sum(axis=1)


def _mean_difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mean absolute difference in grey levels of each pair of thumbnails."""
    # int16, because uint8 would wrap around below 0
    return np.abs(first.astype(np.int16) - second.astype(np.int16)).mean(axis=1)
