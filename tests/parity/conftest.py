"""Parity tests: our code on the recorded states and inputs must give the recorded outputs of the authors' code.

A module names its folder in GOLDEN; a test that takes `case` then runs on every folder in it that `is_case`, or, where
the module has CASES ("*.json"), on every file that matches. Where there is nothing to run on, the tests fail.
"""

from pathlib import Path
from typing import Any

import pytest
import torch


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        paths = cases(metafunc.config.getoption("--golden") / metafunc.module.GOLDEN, metafunc.module)
        metafunc.parametrize("case", paths, ids=[path.stem for path in paths])


def cases(folder: Path, module: Any) -> list[Path]:
    """What the tests of a module run on."""
    pattern, is_case = getattr(module, "CASES", None), getattr(module, "is_case", Path.is_dir)
    paths = sorted(folder.glob(pattern)) if pattern else sorted(path for path in folder.glob("*") if is_case(path))
    if not paths:
        pytest.fail(f"{folder} holds nothing for {module.__name__} to compare with", pytrace=False)
    return paths


@pytest.fixture(autouse=True)
def one_thread():
    """The reference values were recorded with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
