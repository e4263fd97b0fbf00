"""A stage that was killed at any step and started again ends bit for bit like one that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small import prepared, small_plan

from bench.runs.run import Run
from bench.training import worker

CASES = {  # method, and the stage that is killed
    "vit": ("vit", "supervised"),
    "deit": ("deit", "supervised"),
    "beit": ("beit", "pretrain"),
    "data2vec": ("data2vec", "pretrain"),
    "beit, fine-tuning": ("beit", "finetune"),
    "tokenizer": ("beit", "tokenizer"),
}
STEPS = 20
RANDOM = {"drop_path": 0.2, "dropout": 0.1}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "scenes"))


def start(run: Run) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(worker.__file__).parents[2])}
    with run.path("stderr.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "bench.training.worker", str(run.root)], env=environment, stderr=log
        )


def reached(run: Run, step: int) -> bool:
    return any(record.step >= step for record in run.records())


def kill_at(run: Run, step: int) -> None:
    """Start a worker and end it with SIGKILL as soon as it has recorded `step`."""
    process = start(run)
    try:
        deadline = time.monotonic() + 120
        while not reached(run, step):
            assert process.poll() is None, run.path("stderr.log").read_text()[-2000:]
            assert time.monotonic() < deadline, f"step {step} was not reached"
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("case", CASES)
def test_a_killed_stage_ends_like_one_that_was_not(tmp_path, case):
    method, kind = CASES[case]
    values = {"epochs": STEPS / 4, "precision": "bf16", "clip_grad": 1.0, "checkpoint_every_epochs": 1.25}
    if kind in ("supervised", "finetune"):
        values["model_ema"] = 0.9
    plan = small_plan(tmp_path, method, only=kind, **values, **RANDOM)
    runs = prepared(tmp_path / "whole", plan)
    before = list(runs)[: list(runs).index(kind)]
    assert worker.main([str(runs[name].root) for name in [*before, kind]]) == 0
    killed = prepared(tmp_path / "killed", plan)[kind]
    killed.path("launch.json").write_bytes(runs[kind].path("launch.json").read_bytes())  # the same earlier stages
    step = random.randint(1, STEPS - 6)
    kill_at(killed, step)
    assert killed.status().state == "interrupted"
    assert worker.main([str(killed.root)]) == 0
    for path in runs[kind].path("final").iterdir():
        assert killed.path("final", path.name).read_bytes() == path.read_bytes(), f"{path.name}, killed at step {step}"
    assert losses(killed) == losses(runs[kind])


def losses(run: Run) -> list[tuple[int, float]]:
    return [(record.step, record.value) for record in run.records() if record.metric == "loss"]


def test_a_worker_stops_at_a_step_boundary_when_the_scheduler_warns(tmp_path):
    run = prepared(tmp_path, small_plan(tmp_path, "vit", epochs=500, checkpoint_every_epochs=0))["supervised"]
    process = start(run)
    while not reached(run, 1):
        assert process.poll() is None, run.path("stderr.log").read_text()[-2000:]
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 75
    status = run.status()
    assert status.state == "interrupted"
    assert run.path("checkpoints", f"step-{status.step:08d}", "manifest.json").exists()
