"""The Python API: `import bench` is quick, each function does what its command does, tables are DataFrames."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import bench
from bench.cli.app import app
from bench.config.stage import Plan
from bench.data.splits import SplitRequest, open_source
from bench.launch.scheduler import PlanOutcome

HEAVY = {"torch", "torchvision", "timm", "transformers", "accelerate", "pandas", "scipy", "matplotlib", "pydantic"}
TINY = {"methods": ["vit"], "tasks": ["demo"], "size": "nano", "scale": "toy", "seeds": [0], "name": "tiny"}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a toy study with one arm."""
    folder = tmp_path_factory.mktemp("api")
    outcome = bench.run(bench.plan(**TINY, output=folder), output=folder, devices="cpu")
    assert isinstance(outcome, PlanOutcome)
    assert outcome.exit_code == 0, outcome.reasons
    return folder


def run_of(output: Path, kind: str) -> str:
    (folder,) = (output / "runs").glob(f"{kind}-*")
    return folder.name


def test_importing_bench_loads_nothing_heavy() -> None:
    code = f"import sys, bench; dir(bench); print({HEAVY!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_public_name_is_there_and_documented() -> None:
    assert set(bench.__all__) <= set(dir(bench))
    assert all(getattr(bench, name).__doc__ for name in bench.__all__)
    with pytest.raises(AttributeError, match="no attribute 'plot'"):
        bench.plot  # noqa: B018 - the access is what is tested


def test_a_plan_is_the_one_of_the_command_line(output: Path) -> None:
    planned = bench.plan(**TINY, output=output)
    assert isinstance(planned, Plan)
    arguments = ["plan", "-m", "vit", "-t", "demo", "--size", "nano", "--scale", "toy", "--seeds", "0", "--json"]
    shown = json.loads(CliRunner().invoke(app, [*arguments, "--name", "tiny", "-o", str(output)]).stdout)
    assert [stage["key"] for stage in shown["stages"]] == list(planned.stages)


def test_a_keyword_that_does_not_exist_offers_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"no keyword 'method'\. Did you mean methods\?"):
        bench.plan(method="vit", tasks="demo")  # type: ignore[call-arg]


def test_one_string_is_one_method() -> None:
    assert [arm.method for arm in bench.plan(**{**TINY, "methods": "vit", "tasks": "demo"}).arms] == ["vit"]


def test_an_override_is_stronger_than_any_file() -> None:
    planned = bench.plan(**TINY, overrides={"supervised.lr": 0.125})
    (stage,) = [stage for stage in planned.stages.values() if stage.kind == "supervised"]
    assert stage.recipe is not None
    assert (stage.recipe.lr, stage.origins["recipe.lr"]) == (0.125, "--set")


def test_a_study_on_absent_data_is_planned_and_not_run(tmp_path: Path) -> None:
    planned = bench.plan("beit-table1", output=tmp_path)
    with pytest.raises(bench.BenchError, match="planned without its data; plan with data_dir"):
        bench.run(planned, output=tmp_path)
    assert not any(tmp_path.iterdir())


def test_running_again_runs_nothing(output: Path) -> None:
    before = (output / "runs" / run_of(output, "supervised") / "attempts.jsonl").read_text()
    assert set(bench.run(bench.plan(**TINY, output=output), output=output).results.values()) == {"done"}
    assert (output / "runs" / run_of(output, "supervised") / "attempts.jsonl").read_text() == before


def test_a_report_holds_data_frames(output: Path) -> None:
    report = bench.compare("tiny-toy", output=output)
    assert report.complete
    assert report.scores.loc[0, ["label", "metric"]].tolist() == ["ViT", "top1"]
    assert isinstance(report.differences, pd.DataFrame)
    assert isinstance(report.convergence, pd.DataFrame)
    assert (report.folder / "report.html").exists()


def test_records_are_a_row_per_number(output: Path) -> None:
    frame = bench.records("tiny-toy", output=output)
    assert list(frame.columns[:6]) == ["arm", "seed", "stage", "run", "step", "epoch"]
    losses = bench.records("tiny-toy", output=output, metric="loss", split="train")
    assert losses["step"].is_monotonic_increasing
    assert np.isfinite(losses["value"]).all()
    with pytest.raises(bench.BenchError, match="Did you mean loss"):
        bench.records("tiny-toy", output=output, metric="los")


@pytest.mark.parametrize("kind", ["supervised", "evaluate"])
def test_a_run_is_loaded_as_a_model_that_scores_as_it_was_scored(output: Path, kind: str) -> None:
    model = bench.load_model(run_of(output, kind), output=output)
    assert isinstance(model, bench.Objective)
    assert not model.training
    transform = bench.load_transform(run_of(output, kind), output=output)
    samples = open_source(SplitRequest(dataset="demo", split="val", limit=32))
    images = torch.stack([transform(samples[number]["image"]) for number in range(len(samples))])
    with torch.no_grad():
        answers = model.predict({"image": images})["logits"].argmax(1)
    stored = pd.read_parquet(output / "runs" / run_of(output, "evaluate") / "predictions.parquet").set_index("id")
    names = [samples.name(number) for number in range(len(samples))]
    assert answers.tolist() == stored.loc[names, "prediction"].tolist()


def test_an_image_of_any_size_and_mode_is_transformed(output: Path) -> None:
    transform = bench.load_transform(run_of(output, "supervised"), output=output)
    assert transform(Image.new("L", (300, 70))).shape == (3, 48, 48)


def test_a_checkpoint_is_scored_into_a_frame(output: Path, tmp_path: Path) -> None:
    run = run_of(output, "supervised")
    done = CliRunner().invoke(app, ["export", run, str(tmp_path / "net"), "--to", "timm", "-o", str(output)])
    assert done.exit_code == 0, done.output
    frame = bench.evaluate(tmp_path / "net", "demo", limit=32, output=output, resources={"devices": "cpu"})
    top1 = frame.set_index("metric").loc["top1"]
    assert top1["low"] <= top1["value"] <= top1["high"]
    scored = bench.compare("tiny-toy", output=output).scores.loc[0, "score"]
    assert top1["value"] == pytest.approx(scored, abs=1e-6)
    model = bench.load_model(tmp_path / "net")
    assert isinstance(model.backbone, bench.Backbone)
    assert bench.load_transform(tmp_path / "net")(Image.new("RGB", (80, 60))).shape == (3, 48, 48)


def test_an_unknown_model_is_refused_with_what_could_be_written(output: Path) -> None:
    with pytest.raises(bench.BenchError, match="hub id like"):
        bench.load_model("nix", output=output)


def test_the_quickstart_runs_from_its_first_to_its_last_cell(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "examples" / "quickstart.py"
    environment = {**os.environ, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path / "results")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "labelled" in done.stdout.splitlines()[-1]
    assert (tmp_path / "results" / "quickstart.png").stat().st_size > 5_000
