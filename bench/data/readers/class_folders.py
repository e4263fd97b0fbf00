"""Images as files: a folder per class, or one flat folder beside a table that says which class each has."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.data.readers.image_files import File, list_images, subfolders
from bench.data.readers.index import WORDNET_ID, Index, concatenate, index_of_files
from bench.data.readers.wordnet import Classes, check_classes, class_in_name, image_id
from bench.data.scan_progress import counter
from bench.errors import BenchError, listed_up_to

THREADS = 16  # more than cores: on a network drive listing a folder is waiting
SOLUTION = "LOC_val_solution.csv"
SOLUTION_HEAD = ["ImageId", "PredictionString"]


def class_folders(tree: Path, expected: Classes) -> Index:
    """The images of tree/<WordNet id>/, whose folders must be the expected classes."""
    folders = subfolders(tree)
    check_classes(folders, expected, tree)
    with ThreadPoolExecutor(THREADS) as threads, counter(f"listing {tree}", len(folders)) as count:
        parts = []
        for label, part in enumerate(threads.map(lambda name: _class_images(tree, name), folders)):
            parts.append(replace(part, labels=np.full(len(part.ids), label, np.int32)))
            count.advance(1)
    empty = [name for name, part in zip(folders, parts, strict=True) if not len(part.ids)]
    if empty:
        raise BenchError(f"{tree}: no images in the class folder {listed_up_to(empty)}")
    return concatenate(parts)


def has_class_folders(tree: Path) -> bool:
    """Whether a folder has subfolders named by WordNet ids."""
    return tree.is_dir() and any(WORDNET_ID.fullmatch(name) for name in subfolders(tree))


def flat_folder(tree: Path, table: Path, expected: Classes) -> tuple[Index, list[str]]:
    """The images directly in `tree`, with the classes from Kaggle's table; and what `tree` lacks of the table."""
    class_of = _read_solution(table)
    files = list_images(tree)
    stems = [file.path.rpartition("/")[2].partition(".")[0] for file in files]
    missing, unlabelled = sorted(class_of.keys() - set(stems)), sorted(set(stems) - class_of.keys())
    if unlabelled:
        raise BenchError(f"{table} has no class for {len(unlabelled):,} images of {tree}: {listed_up_to(unlabelled)}")
    check_classes(sorted(set(class_of.values())), expected, table, "row of at least one image")
    rank = expected.rank
    index = _index(tree, files, [rank[class_of[stem]] for stem in stems])
    # a stage may record this text, and then it is part of its key: do not reword it
    lacks = f"missing {len(missing):,} of the {len(class_of):,} pictures of {table.name}: {listed_up_to(missing)}"
    return index, [lacks] if missing else []


def _read_solution(table: Path) -> dict[str, str]:
    """Image -> WordNet id. A row reads: ILSVRC2012_val_00048981,n03995372 85 1 499 272; boxes may follow the id."""
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BenchError(f"{table}: {error}") from None
    if not rows or rows[0] != SOLUTION_HEAD:
        raise BenchError(f"{table}: its first line should be {','.join(SOLUTION_HEAD)}")
    class_of: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        wordnet_id = row[1].partition(" ")[0] if len(row) == 2 else ""
        if not WORDNET_ID.fullmatch(wordnet_id):
            raise BenchError(f"{table}, line {number}: {','.join(row)!r} names no image with a WordNet id")
        if row[0] in class_of:
            raise BenchError(f"{table}, line {number}: {row[0]} occurs twice")
        class_of[row[0]] = wordnet_id
    return class_of


def _class_images(tree: Path, name: str) -> Index:
    """The images of one class, not labelled yet; BenchError when the name of one tells another class."""
    files = list_images(tree / name, below=name)
    for file in files:
        named_class = class_in_name(file.path)
        if named_class not in ("", name):
            raise BenchError(
                f"{tree / file.path} is by its name an image of {named_class}; was the folder renamed or mixed up?"
            )
    return _index(tree, files, [-1] * len(files))


def _index(tree: Path, files: Sequence[File], labels: Sequence[int]) -> Index:
    return index_of_files(
        [image_id(file.path) for file in files],
        labels,
        [f"{tree}/{file.path}" for file in files],
        [file.size for file in files],
        [file.changed for file in files],
    )
