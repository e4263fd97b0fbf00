"""Files that travel with bench: tasks, studies, published numbers, reference curves.

In a checkout they are beside the package, where people read and change them; in an installed wheel inside it, under
`bench/shipped/`, because a folder `tasks` in site-packages could be anybody's.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from bench.errors import BenchError


def shipped(name: str) -> Path:
    """The path of a shipped file or folder, like 'tasks' or 'results/published.csv'; BenchError when it is missing."""
    package = Path(str(resources.files("bench"))).resolve()
    checkout = package.parent
    for path in (package / "shipped" / name, checkout / name):
        if path.exists() and (path.is_relative_to(package) or (checkout / "pyproject.toml").is_file()):
            return path
    raise BenchError(f"{name} is missing from this installation of bench in {package}; install bench again")
