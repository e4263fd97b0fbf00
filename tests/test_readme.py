"""Every command of README.md works as printed; here with a few steps instead of whole budgets."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
BLOCKS = re.findall(r"^    (bench|make) (.+?)(?: +#.*)?$", TEXT, flags=re.MULTILINE)
STAGES = {
    "vit": ["SUPERVISED"],
    "deit": ["TEACHER", "SUPERVISED"],
    "beit": ["TOKENIZER", "PRETRAIN", "FINETUNE"],
    "data2vec": ["PRETRAIN", "FINETUNE"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, with pictures of one's own: train/<class>/*.jpg and val/<class>/*.jpg."""
    folder = tmp_path_factory.mktemp("readme")
    for split, count in (("train", 80), ("val", 8)):
        for colour in ("blue", "red"):
            (folder / "pictures" / split / colour).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (80, 60), colour).save(folder / "pictures" / split / colour / f"{number}.jpg")
    (folder / "tasks").symlink_to(ROOT / "tasks")
    return folder


def few_steps(words: list[str]) -> dict[str, str]:
    """The variables that make the stages of a command short; one that no stage has would be an error."""
    own = "--method" in words or "demo" in words
    if words[0] not in ("run", "plan") or not own:
        return {}
    methods = [each for each in STAGES if each in " ".join(words)] if "--method" in words else list(STAGES)
    stages = [stage for method in methods for stage in STAGES[method]]
    return {
        f"BENCH_{stage}_{key}": value for stage in stages for key, value in (("EPOCHS", ".1"), ("WARMUP_EPOCHS", "0"))
    }


def run(words: list[str], place: Path) -> str:
    return execute([sys.executable, "-m", "bench", *words], few_steps(words), place)


def execute(command: list[str], variables: dict[str, str], place: Path) -> str:
    environment = {**os.environ, **variables, "BENCH_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def scored(place: Path) -> str:
    """The folder of a run that was scored on the task demo."""
    paths = sorted((place / "results" / "runs").glob("evaluate-*/stage.json"))
    return next((path.parent.name for path in paths if json.loads(path.read_text())["stage"]["task"] == "demo"), "RUN")


def test_the_bench_commands_work_as_printed(place):
    commands = [shlex.split(rest) for tool, rest in BLOCKS if tool == "bench"]
    assert len(commands) >= 8
    for words in commands:
        meant = {"PATH": str(place / "pictures"), "RUN": scored(place), "DIR": str(place / "exported")}
        run([meant.get(word, word) for word in words], place)
    report = (place / "results" / "reports" / "demo" / "report.md").read_text()
    for method in ("ViT", "DeiT", "BEiT", "data2vec"):
        assert method in report
    (block,) = PYTHON
    variables = few_steps(["run", "--method", "vit", "data2vec"])  # as the commands were run: its stages are done
    assert "top1" in execute([sys.executable, "-c", f"{block}\nprint(*scores.metric)"], variables, place)


def test_the_make_targets_exist():
    targets = [rest for tool, rest in BLOCKS if tool == "make"]
    assert set(targets) >= {"demo", "test"}
    for target in targets:
        planned = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
        assert planned.returncode == 0, planned.stderr


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "bench/README.md"])
def test_files_that_the_architecture_pages_name_are_there(page):
    ideas = "NAME|simmim|pets|slurm"  # what a contributor would write
    names = re.findall(r"`([\w/]+\.(?:py|toml|md))`", (ROOT / page).read_text(encoding="utf-8"))
    assert len(names) > 10
    for name in names:
        assert re.search(ideas, name) or (ROOT / name).exists() or (ROOT / "bench" / name).exists(), name


def test_pictures_and_files_that_the_readme_shows_are_there():
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", TEXT):
        assert (ROOT / target.partition("#")[0]).exists(), f"README.md points to {target}, which is not there"
