"""Partial results of an evaluation, so that one that was stopped resumes with the remaining images."""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path

import numpy as np

from bench.evaluation.scorers import Table, join_tables
from bench.files import write_atomic

log = logging.getLogger(__name__)


class PartialResults:
    """The rows of images that are scored already: files in a folder, each written completely or not at all.

    Several processes write here; no two of them the same image.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> Table:
        """All rows so far, by image; {} without any. A damaged file is skipped, and its images are scored again."""
        tables = [table for path in sorted(self.folder.glob("rows-*.npz")) if (table := _read(path)) is not None]
        return join_tables(tables) if tables else {}

    def write(self, rows: Table) -> None:
        """Add new rows. BenchError when they cannot be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stream = io.BytesIO()
        np.savez(stream, allow_pickle=False, **rows)
        write_atomic(self.folder / f"rows-{int(rows['index'][0]):09d}.npz", stream.getvalue())


def _read(path: Path) -> Table | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged (%s); its images are scored again", path, error)
        return None
