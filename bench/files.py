"""Atomic file writes: a file is complete or absent, because it is written under a temporary name and renamed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.errors import BenchError


def cache_folder() -> Path:
    """The folder for what can be computed again: BENCH_CACHE, else `bench` in the user's cache folder."""
    variable = os.environ.get("BENCH_CACHE")
    return Path(variable) if variable else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bench"


def unwritable(path: Path, error: OSError) -> BenchError:
    """The error for a file that could not be written: full disk, missing rights, read-only system."""
    why = error.strerror or str(error)
    return BenchError(f"cannot write {path}: {why}; make room or rights there, or choose another --output-dir")


def write_atomic(path: Path, content: bytes | str, durable: bool = True) -> None:
    """Replace `path` by `content` in one step; a reader sees the old file or the new one, never half of it.

    durable: also survive a power cut. Raises BenchError when the file cannot be written; `path` is then unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())  # before the rename, or a power cut could leave an empty file under the name
        temporary.replace(path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        discard(temporary)
        raise unwritable(path, error) from None


def sync_folder(folder: Path) -> None:
    """Make the renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Remove a file if it can be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # the folder itself is the problem, and the caller is about to say so


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n", durable)


def read_json(path: Path) -> Any:
    """The JSON value in `path`; BenchError names the file when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BenchError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BenchError(f"{path} is damaged: {error}") from None


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append complete lines to `path`, synced; when the disk is full none of them is left in it."""
    data = "".join(f"{line}\n" for line in lines).encode()
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if path.exists():
            os.truncate(path, before)
        raise unwritable(path, error) from None


def fingerprint(path: Path) -> str:
    """blake2b of a file's content, 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
