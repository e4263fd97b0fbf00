"""The command line: each command parses its options, calls the Python API and prints."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from bench.cli import checkpoints, compare, data, inspect, run
from bench.errors import BenchError, ExitCode


class Commands(TyperGroup):
    """Shows a user's mistake as one line on stderr, with exit code 2; a mistake of ours keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BenchError as error:
            typer.echo(f"bench: {error}", err=True)
            raise typer.Exit(ExitCode.USAGE) from None
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.CTRL_C) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader, like head, has had enough
            raise typer.Exit(ExitCode.OK) from None


app = typer.Typer(
    cls=Commands,
    help="Which way of training a Vision Transformer is better, by how much, at what cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={
        "token_normalize_func": lambda word: word.replace("_", "-"),
        "help_option_names": ["-h", "--help"],
    },
)


@app.callback()
def configure_logging() -> None:
    """Which way of training a Vision Transformer is better, by how much, at what cost."""
    level = os.environ.get("BENCH_LOG_LEVEL", "WARNING").upper()
    if level not in logging.getLevelNamesMapping():
        raise BenchError(f"BENCH_LOG_LEVEL={level}: write DEBUG, INFO, WARNING or ERROR")
    logging.basicConfig(level=level, format="%(levelname)s %(message)s", stream=sys.stderr)


# In the order in which --help lists them.
app.command("list")(inspect.list_)
app.command()(run.plan)
app.command()(run.run)
app.command()(run.evaluate)
app.command()(compare.compare)
app.command()(inspect.watch)
app.command()(compare.diff)
app.command()(inspect.show)
app.command("import")(checkpoints.import_)
app.command("export")(checkpoints.export)
app.add_typer(data.app, name="data")
app.command()(inspect.validate)
app.command()(inspect.version)
