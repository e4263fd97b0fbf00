"""python -m bench: the same as the console script."""

from bench.cli.app import main

main()
