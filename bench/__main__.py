"""python -m bench: the same as the console script."""

from bench.cli.app import app

app(prog_name="bench")
