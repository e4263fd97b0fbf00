"""Pictures as files: a folder per class, or one flat folder beside a table that says which class each has."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bench.data.readers.image_files import File, list_pictures, subfolders
from bench.data.readers.index import WORDNET_ID, Index, joined, some, whole_files
from bench.data.readers.wordnet import Classes, class_in, picture_id, same_classes
from bench.data.scan_progress import counter
from bench.errors import BenchError

THREADS = 16  # a folder on a network drive answers late, and many at once
SOLUTION = "LOC_val_solution.csv"
SOLUTION_HEAD = ["ImageId", "PredictionString"]


def class_folders(tree: Path, expected: Classes) -> Index:
    """The pictures of tree/<WordNet id>/, whose folders must be the expected classes."""
    folders = subfolders(tree)
    same_classes(folders, expected, tree)
    with ThreadPoolExecutor(THREADS) as threads, counter(f"listing {tree}", len(folders)) as count:
        listed = []
        for label, part in enumerate(threads.map(lambda name: _of_class(tree, name), folders)):
            listed.append(part._replace(labels=np.full(len(part.ids), label, np.int32)))
            count.advance(1)
    empty = [name for name, part in zip(folders, listed, strict=True) if not len(part.ids)]
    if empty:
        raise BenchError(f"{tree}: no pictures in the class folder {some(empty)}")
    return joined(listed)


def holds_class_folders(tree: Path) -> bool:
    """Whether there are folders of WordNet ids in a folder."""
    return tree.is_dir() and any(WORDNET_ID.fullmatch(name) for name in subfolders(tree))


def flat(tree: Path, table: Path, expected: Classes) -> tuple[Index, list[str]]:
    """The pictures that lie directly in `tree`, with the classes that Kaggle's table gives; and what `tree` lacks."""
    known = _solution(table)
    files = list_pictures(tree)
    named = {file.path.rpartition("/")[2].partition(".")[0]: file for file in files}
    missing, untold = sorted(known.keys() - named.keys()), sorted(named.keys() - known.keys())
    if untold:
        raise BenchError(f"{table} tells no class of {len(untold):,} pictures of {tree}: {some(untold)}")
    same_classes(sorted(set(known.values())), expected, table, "row of at least one picture")
    rank = expected.rank
    index = _index(tree, files, [rank[known[file.path.rpartition("/")[2].partition(".")[0]]] for file in files])
    told = f"missing {len(missing):,} of the {len(known):,} pictures of {table.name}: {some(missing)}"
    return index, [told] if missing else []


def _solution(table: Path) -> dict[str, str]:
    """Picture -> WordNet id. A row reads: ILSVRC2012_val_00048981,n03995372 85 1 499 272; the first word counts."""
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BenchError(f"{table}: {error}") from None
    if not rows or rows[0] != SOLUTION_HEAD:
        raise BenchError(f"{table}: its first line should be {','.join(SOLUTION_HEAD)}")
    known: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        wordnet_id = row[1].partition(" ")[0] if len(row) == 2 else ""
        if not WORDNET_ID.fullmatch(wordnet_id):
            raise BenchError(f"{table}, line {number}: {','.join(row)!r} names no picture with a WordNet id")
        if row[0] in known:
            raise BenchError(f"{table}, line {number}: {row[0]} is there twice")
        known[row[0]] = wordnet_id
    return known


def _of_class(tree: Path, name: str) -> Index:
    """The pictures of one class; BenchError when the name of one says that it belongs to another."""
    files = list_pictures(tree / name, below=name)
    for file in files:
        told = class_in(file.path)
        if told not in ("", name):
            raise BenchError(
                f"{tree / file.path} is by its name a picture of {told}; was the folder renamed or mixed up?"
            )
    return _index(tree, files, [-1] * len(files))


def _index(tree: Path, files: Sequence[File], labels: Sequence[int]) -> Index:
    return whole_files(
        [picture_id(file.path) for file in files],
        labels,
        [f"{tree}/{file.path}" for file in files],
        [file.size for file in files],
        [file.changed for file in files],
    )
