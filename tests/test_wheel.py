"""The wheel is a working bench: installed away from any checkout it lists, plans, runs and reports."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from bench import resources
from bench.errors import BenchError

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script of a fresh environment in which the wheel is installed.

    Its dependencies are those of this environment, through a .pth file: whose own .pth files, and so an editable
    bench, are not read.
    """
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, because hatchling leaves its marks beside what it builds.
    names = ["bench", "tasks", "pyproject.toml", "README.md", "LICENSE"]
    for name in [*names, "results/published.csv", "results/reference_curves.csv"]:
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy
        copy(CHECKOUT / name, target)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source")]
    subprocess.run([*pip, *built], check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    python = folder / "env" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True, capture_output=True)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent / "bench"


@pytest.fixture
def call(bench: Path, tmp_path: Path):
    """Run a bench command in an empty folder; returns what it printed."""

    def command(*arguments: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"BENCH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([bench, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return command


def test_tasks_studies_and_methods_travel_in_the_wheel(call):
    for what, folder in (("tasks", "tasks"), ("studies", "tasks/studies"), ("methods", "bench/methods")):
        listed = call("list", what)
        for path in (CHECKOUT / folder).glob("*.toml"):
            assert path.stem in listed


def test_the_wheel_plans_the_demo_and_a_papers_table(call):
    assert "30 stages" in call("plan", "demo")
    assert "35 stages" in call("plan", "beit-table4")


def test_published_rows_that_a_study_links_to_are_found(call, bench):
    (study,) = bench.parents[1].glob("lib/*/site-packages/bench/shipped/tasks/studies/vit-table5.toml")
    assert "a study of" in call("validate", str(study))


def test_the_wheel_runs_a_toy_study_and_reports_it(call, tmp_path):
    call("run", "--method", "vit", "--task", "imagenet1k", "--scale", "toy", "--seeds", "0", "--name", "own")
    assert "report.html" in call("compare", "own-toy")
    assert (tmp_path / "results" / "reports" / "own-toy" / "report.html").stat().st_size > 10_000


def test_a_shipped_file_that_is_missing_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(resources.resources, "files", lambda package: tmp_path / package)
    (tmp_path / "tasks").mkdir()  # somebody else's, in site-packages
    with pytest.raises(BenchError, match="tasks is missing from this installation"):
        resources.shipped("tasks")
