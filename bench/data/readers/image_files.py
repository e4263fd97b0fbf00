"""Image files: list them, read them, find those that cannot be read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

from bench.config.stage import digest
from bench.errors import BenchError
from bench.files import cache_folder, write_atomic

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # as torchvision's ImageFolder
CHUNK = 64  # images that one thread decodes at a time


class File(NamedTuple):
    """An image file: its path below a folder, with forward slashes, its bytes and when it last changed (ns)."""

    path: str
    size: int
    changed: int


def read_image(file: Path | BinaryIO, exif_rotate: bool = False) -> Image.Image:
    """The image in a file as RGB, by Pillow's conversion, just as torchvision's ImageFolder reads it.

    So alpha is dropped, 16-bit grey is clipped at 255, and the EXIF rotation is applied only with `exif_rotate`.
    """
    with Image.open(file) as image:
        image.load()
        upright = ImageOps.exif_transpose(image) if exif_rotate else image
        return upright if upright.mode == "RGB" else upright.convert("RGB")


def list_images(folder: Path, below: str = "") -> list[File]:
    """The images of a folder and its subfolders, in the order of torchvision's ImageFolder.

    Names that begin with a dot are skipped. Raises BenchError for a folder that cannot be read and for a
    file name that is not text.
    """
    files = list(_walk(folder, below, frozenset()))
    return sorted(files, key=lambda file: file.path.rpartition("/")[::2])


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, in order, without those that begin with a dot."""
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir())


def find_unreadable(tree: Path, files: Sequence[File]) -> dict[str, str]:
    """Path and reason of each file that does not decode completely.

    Every file is decoded once, in parallel; the result is cached and holds while the file's size and time of change
    stay as they are.
    """
    store = cache_folder() / "pictures" / f"{digest(str(tree.resolve()))}.json"
    checks = _read_checks(store)  # path -> [size, changed, reason]
    new = [file for file in files if checks.get(file.path, ())[:2] != [file.size, file.changed]]
    if new:
        reasons = _check_all(tree, new)
        checks = {file.path: checks.get(file.path, [0, 0, ""]) for file in files}
        checks |= {file.path: [file.size, file.changed, why] for file, why in zip(new, reasons, strict=True)}
        _save_checks(store, checks)
    return {file.path: checks[file.path][2] for file in files if checks[file.path][2]}


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise BenchError(f"cannot read the folder {folder}: {error.strerror or error}") from None
    for entry in visible:
        if entry.name.encode(errors="replace") != os.fsencode(entry.name):
            raise BenchError(f"{folder}: the file name {entry.name!r} is not valid UTF-8; rename it")
    return visible


def _walk(folder: Path, below: str, above: frozenset[tuple[int, int]]) -> Iterator[File]:
    """Images under `folder`; `above` are the folders on the way here, so that a cycle of symbolic links ends."""
    entries = _entries(folder)
    status = folder.stat()
    inode = (status.st_dev, status.st_ino)
    if inode in above:
        return
    for entry in entries:
        path = f"{below}/{entry.name}" if below else entry.name
        if entry.is_dir():
            yield from _walk(folder / entry.name, path, above | {inode})
        elif entry.name.lower().endswith(SUFFIXES):
            yield _file(entry, path)


def _file(entry: os.DirEntry[str], path: str) -> File:
    try:
        status = entry.stat()
    except OSError:
        return File(path, 0, 0)  # a broken link: decoding will report it
    return File(path, status.st_size, status.st_mtime_ns)


def _read_checks(store: Path) -> dict[str, list]:
    """Results of earlier checks; {} for a missing or damaged cache, since it can be made again."""
    try:
        return json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _save_checks(store: Path, checks: dict[str, list]) -> None:
    try:
        write_atomic(store, json.dumps(checks), durable=False)
    except BenchError as error:
        raise BenchError(f"cannot save the list of checked images ({error}); set BENCH_CACHE to a folder") from None


def _check_all(tree: Path, files: Sequence[File]) -> list[str]:
    """For each file the reason why it cannot be read, or ''."""
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        parts = threads.map(lambda chunk: [decode_error(tree / file.path, file.size) for file in chunk], chunks)
        return [why for part in parts for why in part]


def decode_error(file: Path | BinaryIO, size: int) -> str:
    """Why an image of `size` bytes does not decode completely, or ''."""
    try:
        with Image.open(file) as image:
            image.draft("RGB", (1, 1))  # of a JPEG all bytes are still parsed, but at a third of the cost
            image.load()
        return ""
    except UnidentifiedImageError:
        return "not an image" if size else "zero bytes"
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # damaged bytes can make a decoder raise anything, and all of it is to be reported
        return f"{type(error).__name__}: {error}"
