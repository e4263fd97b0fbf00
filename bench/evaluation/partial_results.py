"""Rows of an evaluation under way, kept as they come, so that one that was stopped goes on with the images left."""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path

import numpy as np

from bench.evaluation.scorers import Table, joined
from bench.files import write_atomic

log = logging.getLogger(__name__)


class Partial:
    """The images that are scored already: files of rows in a folder, written whole or not at all.

    Several processes write here; none writes an image that another has.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> Table:
        """All rows so far, by image; {} before the first ones. A damaged file is left out: its images are done anew."""
        tables = [table for path in sorted(self.folder.glob("rows-*.npz")) if (table := _read(path)) is not None]
        return joined(tables) if tables else {}

    def write(self, rows: Table) -> None:
        """Keep rows that are new. BenchError when they cannot be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stream = io.BytesIO()
        np.savez(stream, allow_pickle=False, **rows)
        write_atomic(self.folder / f"rows-{int(rows['index'][0]):09d}.npz", stream.getvalue())


def _read(path: Path) -> Table | None:
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged (%s); its images are scored again", path, error)
        return None
