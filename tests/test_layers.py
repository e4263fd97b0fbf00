"""Imports go one way, what answers quickly imports nothing slow, and nothing outgrows its room."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import bench

ROOT = Path(bench.__file__).parent
TESTS = Path(__file__).parent
ROOMS = [
    line.split()
    for line in re.findall(r"^```rooms\n(.*?)^```", (TESTS.parent / "CONTRIBUTING.md").read_text(), re.M | re.S)[0]
    .strip()
    .splitlines()
]
PLACE = {room: number for number, rooms in enumerate(ROOMS) for room in rooms} | {"__main__": len(ROOMS)}
BASE = set(ROOMS[0])
HEAVY = {"torch", "torchvision", "timm", "transformers", "accelerate", "pandas", "scipy", "matplotlib", "sklearn"}
WITH_TORCH = {"models", "methods", "checkpoints", "evaluation", "training", "pipeline"}
EXCEPTIONS = {  # modules that are unlike their room
    "launch.distributed": True,
    "pipeline.sampler": False,
    "checkpoints.locate": False,
    "checkpoints.model_card": False,
}
PANDAS_AND_SCIPY = {"stats", "reporting"}  # pandas starts in half a second, torch in five
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_MODULES = 400, 40, 15
TEST_FOLDERS = {"parity", "support", "golden"}  # beside those that mirror a room
OUTSIDE = ("tests", "benchmarks", "examples")
UNCLEAR = {"found", "told", "held", "kept", "one"}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def dotted(path: Path) -> str:
    """bench/data/splits.py -> data.splits; a package goes by its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


MODULES = {dotted(path): path for path in sorted(ROOT.rglob("*.py"))}


def room_of(module: str) -> str:
    return module.split(".")[0]


def imports(module: str, top_only: bool = False) -> set[str]:
    """Dotted names that a module imports anywhere, for types as well; or at its top level, outside TYPE_CHECKING."""
    tree = tree_of(MODULES[module])
    names: set[str] = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(module: str) -> set[str]:
    """The modules of bench that a module imports, itself left out."""
    seen = set()
    for name in imports(module):
        if name.split(".")[0] == "bench":
            rest = name.partition(".")[2]
            seen.add(rest if rest in MODULES else rest.rpartition(".")[0])
    return seen - {module, ""}


def names_bound(path: Path) -> set[str]:
    """The names that a file assigns, loops over or takes as parameters."""
    nodes = list(ast.walk(tree_of(path)))
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return names | {node.arg for node in nodes if isinstance(node, ast.arg)}


def classes() -> Iterator[tuple[str, str]]:
    for module, path in MODULES.items():
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield node.name, module


@pytest.mark.parametrize("module", [name for name in MODULES if name], ids=str)
def test_imports_go_one_way(module: str) -> None:
    assert room_of(module) in PLACE, f"CONTRIBUTING.md has no room {room_of(module)}"
    above = sorted(name for name in own_imports(module) if PLACE[room_of(name)] > PLACE[room_of(module)])
    assert not above, f"{module} imports {', '.join(above)}, which stand above it"


def test_modules_form_no_circle() -> None:
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for other in own_imports(module):
                visit(other, (*way, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_nothing_goes_through_the_front_door() -> None:
    """bench/__init__.py reaches everything, lazily; a module that imported it would close a circle."""
    for module, path in MODULES.items():
        for node in ast.walk(tree_of(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not (isinstance(node, ast.Import) and "bench" in names), f"{module}: import bench"
            if isinstance(node, ast.ImportFrom) and node.module == "bench":
                assert set(names) <= set(PLACE), f"{module}: from bench import {', '.join(names)}"


def test_reports_see_only_what_runs_left() -> None:
    seen = BASE | {"config", "stats", "runs", "reporting"}
    for module in MODULES:
        rooms = {room_of(name) for name in own_imports(module)}
        if room_of(module) == "reporting":
            assert rooms <= seen, f"{module} imports from {', '.join(sorted(rooms - seen))}"
        elif room_of(module) not in ("api", "cli", ""):
            assert "reporting" not in rooms, f"{module} imports the report"


@pytest.mark.parametrize("module", MODULES, ids=lambda name: name or "bench")
def test_what_must_be_quick_imports_nothing_slow(module: str) -> None:
    if EXCEPTIONS.get(module, room_of(module) in WITH_TORCH):
        return
    allowed = {"pandas", "scipy"} if room_of(module) in PANDAS_AND_SCIPY else set()
    allowed |= {"matplotlib"} if module.startswith("reporting.figures") else set()
    assert not {name.split(".")[0] for name in imports(module, top_only=True)} & HEAVY - allowed


def loaded(*arguments: str) -> set[str]:
    """The slow modules that a command has in memory when it is done."""
    code = (
        f"import sys; sys.argv = ['bench', *{list(arguments)!r}]\nfrom bench.cli.app import app\n"
        "try:\n    app()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
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
    code = "import sys, bench.launch.scheduler, bench.reporting; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("room", ["training", "evaluation", "launch", "planning", "checkpoints", "pipeline", "models"])
def test_only_the_room_of_methods_knows_them_by_name(room: str) -> None:
    from bench import methods

    knowing = {"checkpoints.formats", "models.backbone", "models.init"}  # networks and layouts are called after them
    for module in MODULES:
        if room_of(module) == room and not any(module.startswith(name) for name in knowing):
            imported = {name for name in own_imports(module) if name.startswith("methods.")}
            assert not imported & {f"methods.{method}" for method in methods.names()}, module


SHARED = ["objective", "masked_images", "classification", "segmentation", "linear_probe"]
OF_ANY_METHOD = [
    *("training.loop", "training.step", "training.worker", "evaluation.loop"),
    *(f"checkpoints.{name}" for name in ("conversion", "warm_start", "importer", "exporter", "model_card")),
]


@pytest.mark.parametrize("module", SHARED)
def test_what_methods_share_imports_none_of_them(module: str) -> None:
    from bench import methods

    assert not own_imports(f"methods.{module}") & {f"methods.{method}" for method in methods.names()}


@pytest.mark.parametrize("module", OF_ANY_METHOD)
def test_the_loop_and_the_conversion_name_no_method(module: str) -> None:
    from bench import methods

    strings = {node.value for node in ast.walk(tree_of(MODULES[module])) if isinstance(node, ast.Constant)}
    assert not strings & set(methods.names())


def test_no_module_function_or_folder_outgrows_a_readers_eye() -> None:
    folders: dict[Path, int] = defaultdict(int)
    for module, path in MODULES.items():
        lines = path.read_text().count("\n")
        assert lines <= MOST_LINES, f"{module} has {lines} lines"
        folders[path.parent] += path.name != "__init__.py"
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= MOST_LINES_OF_A_FUNCTION, f"{module}.{node.name} has {length} lines"
    for folder, count in folders.items():
        assert count <= MOST_MODULES, f"{folder.relative_to(ROOT.parent)} has {count} modules"


def test_every_module_says_what_it_is() -> None:
    assert not [module for module, path in MODULES.items() if not ast.get_docstring(tree_of(path))]


def test_no_public_class_name_is_used_twice() -> None:
    where: dict[str, list[str]] = defaultdict(list)
    for name, module in classes():
        where[name].append(module)
    assert not {name: modules for name, modules in where.items() if len(modules) > 1}


@pytest.mark.parametrize("module", [name for name in MODULES if name], ids=str)
def test_names_are_the_noun_of_the_thing(module: str) -> None:
    """A name like `found` says that somebody looked; the noun says what is in it."""
    assert not names_bound(MODULES[module]) & UNCLEAR


def test_names_outside_the_package_are_nouns_too() -> None:
    files = [path for folder in OUTSIDE for path in sorted((TESTS.parent / folder).rglob("*.py"))]
    unclear = {str(path.relative_to(TESTS.parent)): names_bound(path) & UNCLEAR for path in files}
    assert not {path: names for path, names in unclear.items() if names}


def test_tests_have_the_folders_of_the_package() -> None:
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders - TEST_FOLDERS <= set(PLACE)
