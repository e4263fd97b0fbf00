"""Imports go one way, and what answers quickly imports nothing slow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bench

ROOT = Path(bench.__file__).parent

# From the bottom up; a module imports from its own layer or from below. What is not named is one of the parts.
PARTS = 1
LAYERS = (
    {"", "spec", "mistakes", "seeds", "files", "lease", "environment", "store", "power", "references"},
    {"datasets", "settings", "tasks", "values"},
    {"methods"},
    {"layers", "settled", "fidelity", "costs", "plan", "toy"},
    {"train", "update", "evaluate", "checkpoint", "scoring", "partial", "neighbours", "pictures", "building"}
    | {"hub", "adopting", "importing", "card", "exporting"},  # checkpoints in and out
    {"worker", "launch", "run", "forecast", "evaluating"},
    {"differing", "watching", "options", "asking", "progress", "views", "listing"}
    | {"checkpoint_commands", "data_commands", "cli", "__main__"},
)
PLACE = {name: number for number, names in enumerate(LAYERS) for name in names}
BESIDE = {"compare"}  # sees only the first layer, and is seen by the command line
HEAVY = {"torch", "torchvision", "timm", "transformers", "accelerate", "pandas", "scipy", "matplotlib", "sklearn"}
WITHOUT_TORCH = (
    "spec", "mistakes", "store", "files", "lease", "environment", "values", "layers", "settled", "fidelity", "plan",
    "toy", "costs", "tasks", "run", "launch", "forecast", "differing", "watching", "options", "asking",
    "progress", "views", "listing", "cli", "compare", "settings", "locate", "evaluating", "starting", "card",
    "checkpoint_commands", "datasets", "counting", "manifest", "completeness", "subsets", "inspection",
    "duplicates", "data_commands",
)  # fmt: skip


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    """The module, or the folder, directly below the package."""
    first = path.relative_to(ROOT).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imported(path: Path, top_only: bool = False) -> set[str]:
    """Dotted names of all modules that a file imports; those at its top level only, outside TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else [node for node in ast.walk(tree) if not _only_for_types(node, tree)]
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module == "bench" else {node.module}
    return found


def _only_for_types(node: ast.AST, tree: ast.Module) -> bool:
    guards = [each for each in tree.body if isinstance(each, ast.If) and "TYPE_CHECKING" in ast.dump(each.test)]
    return any(node is inner for guard in guards for inner in ast.walk(guard))


def parts_imported(path: Path) -> set[str]:
    """The parts of the package that a file imports."""
    names = {name for name in imported(path) if name == "bench" or name.startswith("bench.")}
    return {name.split(".")[1] if "." in name else "" for name in names}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    here = part_of(path)
    if here in BESIDE:
        assert parts_imported(path) <= BESIDE | LAYERS[0]
        return
    seen = parts_imported(path) - BESIDE
    above = sorted(part for part in seen if PLACE.get(part, PARTS) > PLACE.get(here, PARTS))
    assert not above, f"{path.relative_to(ROOT)} imports {', '.join(above)}, which stand above it"
    if here != "cli":
        assert not parts_imported(path) & BESIDE, f"{path.relative_to(ROOT)} imports the report"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_must_be_quick_imports_no_torch_at_the_top(path: Path) -> None:
    if part_of(path) in WITHOUT_TORCH:
        slow = {name for name in imported(path, top_only=True) if name.split(".")[0] in HEAVY - {"pandas", "scipy"}}
        allowed = {name for name in slow if part_of(path) == "compare" and name.startswith("matplotlib")}
        assert not slow - allowed


def loaded(*arguments: str) -> set[str]:
    """The slow modules that a command has in memory when it is done."""
    code = (
        f"import sys; sys.argv = ['bench', *{list(arguments)!r}]\nfrom bench.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"print('LOADED', *sorted({{name.split('.')[0] for name in sys.modules}} & {HEAVY!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["list", "methods"], ["list", "tasks"], ["list", "studies"], ["list", "runs"]],
    ids=" ".join,
)
def test_help_and_lists_load_nothing_slow(arguments: list[str]) -> None:
    assert loaded(*arguments) == set()


def test_a_plan_and_a_run_are_made_without_torch() -> None:
    assert "torch" not in loaded("plan", "--method", "vit", "--task", "demo", "--size", "nano")
    code = "import sys, bench.run, bench.compare; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_loop_knows_no_method() -> None:
    from bench import methods

    for name in ("train.py", "update.py", "worker.py", "evaluate.py", "run.py", "plan.py"):
        text = (ROOT / name).read_text()
        assert not [method for method in methods.names() if f'"{method}"' in text or f"'{method}'" in text], name
