"""Each script in benchmarks/ runs to its end, at its smallest, and prints tables whose every line is filled."""

import os
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "benchmarks"


def printed(script: str, *options: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / script), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines(text: str) -> list[list[str]]:
    """The cells of every line of every table, without headings."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line, after in zip(rows, [*rows[1:], ""], strict=True)
        if not line.startswith("|--") and not after.startswith("|--")
    ]


def test_steps_compares_every_method_with_its_peer():
    options = ["--device", "cpu", "--batch-size", "2", "--steps", "1", "--rounds", "1"]
    rows = lines(printed("steps.py", *options))
    assert [cells[0] for cells in rows] == ["ViT", "DeiT", "BEiT", "data2vec"]
    for _, bench, title, other, ratio in rows:
        assert title and all(re.fullmatch(r"[\d,]+", rate) for rate in (bench, other))
        assert float(ratio) > 0


def test_input_compares_our_views_with_plain_pipelines():
    rows = lines(printed("input.py", "--images", "2", "--rounds", "1"))
    names = [cells[0] for cells in rows]
    assert {"torchvision, float", "timm, float", "bench, uint8", "as the authors, float"} <= set(names)
    for _, rate, ratio in rows:
        assert re.fullmatch(r"[\d,]+", rate) and float(ratio) > 0


def test_analysis_compares_the_statistics_with_a_plain_bootstrap():
    few = ["--arms", "2", "--seeds", "2", "--images", "200", "--draws", "50", "--plain-draws", "2"]
    text = printed("analysis.py", *few)
    assert "2 arms, 2 seeds, 200 images, 50 draws" in text
    assert re.search(r"analysis [\d.]+, of it bootstrap [\d.]+; plain bootstrap \d+ \(from 2 draws\); ratio \d+", text)
