"""What a command writes: its answer to stdout, everything else to stderr."""

from __future__ import annotations

import json
from typing import Any

import typer


def emit(answer: Any) -> None:
    """Text as it is, anything else as JSON, to stdout."""
    typer.echo(answer if isinstance(answer, str) else json.dumps(answer, indent=1))


def log(line: str) -> None:
    """A line to stderr."""
    typer.echo(line, err=True)
