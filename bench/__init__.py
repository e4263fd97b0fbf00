"""bench: which way of training a Vision Transformer is better, by how much, at what cost.

The public names below are imported on first use, so that `import bench` is quick. `bench.api` documents them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.version import __version__

if TYPE_CHECKING:
    from bench.api import compare, evaluate, load_model, load_transform, plan, records, run
    from bench.errors import BenchError
    from bench.methods.objective import Objective
    from bench.models.backbone import Backbone

__all__ = [
    "Backbone",
    "BenchError",
    "Objective",
    "__version__",
    "compare",
    "evaluate",
    "load_model",
    "load_transform",
    "plan",
    "records",
    "run",
]  # fmt: skip

_ELSEWHERE = {
    "Backbone": "bench.models.backbone",
    "BenchError": "bench.errors",
    "Objective": "bench.methods.objective",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'bench' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_ELSEWHERE.get(name, "bench.api")), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
