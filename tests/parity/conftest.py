"""Parity tests: our code on the recorded states and inputs must give the recorded outputs of the authors' code.

A module names its folder in GOLDEN; a test that takes `case` then runs on every folder in it, or, where the module
has CASES ("*.json"), on every file that matches.
"""

import pytest
import torch


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    folder = metafunc.config.getoption("--golden") / metafunc.module.GOLDEN
    pattern = getattr(metafunc.module, "CASES", None)
    found = sorted(folder.glob(pattern)) if pattern else sorted(f for f in folder.glob("*") if f.is_dir())
    metafunc.parametrize("case", found, ids=[path.stem for path in found])


@pytest.fixture(autouse=True)
def one_thread():
    """The reference values were recorded with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
