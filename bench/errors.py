"""User errors and exit codes. An error names the value, what is wrong with it, and what would work."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

T = TypeVar("T", bound=BaseModel)
MOST = 8  # errors of one file that are named at once


class ExitCode(IntEnum):
    """What a command, or a launched worker, tells the process that started it. Killed by signal n: 128 + n."""

    OK = 0
    FAILED = 1  # a stage failed
    USAGE = 2  # a BenchError
    UNSUPPORTED = 3  # --check: the data do not support a claim; something is worse; an image occurs twice
    INCOMPLETE = 4  # results or images are missing
    BUSY = 5  # of a worker: another process works on its stage
    INTERRUPTED = 75  # stopped with a checkpoint; sysexits' EX_TEMPFAIL, on which schedulers requeue
    CTRL_C = 130


class BenchError(Exception):
    """An error of the user's, or of the machine's: shown without a traceback, exit code 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean x?' when something like `word` is known, else ''."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]}?" if matches else ""


def unknown(what: str, word: str, known: Iterable[str]) -> BenchError:
    """The error for an unknown name, with the known names and the nearest of them."""
    names = sorted(known)
    return BenchError(f"no {what} {word!r}; available: {', '.join(names) or 'none'}.{nearest(word, names)}")


def listed_up_to(names: Sequence[str], most: int = 10) -> str:
    """The first `most` names and how many more there are: 'a, b and 3 more'; 'none' for no names."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dictionary; BenchError names the file and the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BenchError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BenchError(f"{path}: {error}") from None


def parse(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Validate `values` as a pydantic model; BenchError names every error with its value and the nearest known key."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        lines = [_describe(kind, item) for item in error.errors()]
        more = f"; and {len(lines) - MOST} more" if len(lines) > MOST else ""
        raise BenchError(f"{where}: {'; '.join(lines[:MOST])}{more}") from None


def _describe(kind: type[BaseModel], item: Any) -> str:
    place = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _fields_at(kind, item["loc"][:-1])
        return f"unknown key {place!r}.{nearest(str(item['loc'][-1]), known)}"
    if item["type"] == "missing":
        return f"{place!r} is missing"
    if item["type"] == "value_error":
        return f"{place}: {item['ctx']['error']}" if place else str(item["ctx"]["error"])
    return f"{place} = {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"


def _fields_at(kind: type[BaseModel], place: tuple[Any, ...]) -> list[str]:
    """Field names of the model nested at `place`, as far as it can be followed."""
    for part in place:
        field = kind.model_fields.get(str(part))
        if field is None:
            continue
        inner = [a for a in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(a, type)]
        models = [a for a in inner if issubclass(a, BaseModel)]
        if models:
            kind = models[0]
    return list(kind.model_fields)
