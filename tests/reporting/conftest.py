"""One finished study and its report, shared by the tests that only read them."""

from pathlib import Path

import pytest
from compare_tree import Tree, build

from bench.reporting import Report, compare


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A finished study: 4 arms, 2 tasks, 2 seeds. Not to be changed."""
    return build(tmp_path_factory.mktemp("study") / "results")


@pytest.fixture(scope="session")
def report(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Its report. Not to be changed."""
    return compare(tree.plan, tree.results, tmp_path_factory.mktemp("report") / "demo")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """An empty output folder."""
    return tmp_path / "results"
