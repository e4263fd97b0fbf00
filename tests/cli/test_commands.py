"""The commands as a person types them: what they print, what they refuse, what they exit with."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.cli.app import app
from bench.config.schema import Model, Protocol, Recipe
from bench.config.stage import Data, Stage
from bench.runs.run import Run

# Numbers of our own, so that tuning the demo does not change a test.
NUMBERS = ("supervised.epochs=4", "supervised.batch_size=50", "supervised.warmup_epochs=0", "supervised.lr=1e-3")
SETS = tuple(word for number in NUMBERS for word in ("--set", number))
VIT = ("--method", "vit", "--task", "demo", "--size", "nano", *SETS)
SHORT = ("--limit", "100", "--devices", "cpu")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and no settings of the developer's."""
    for name in ("DATA_DIR", "OUTPUT_DIR", "HOME", "LOG_LEVEL"):
        monkeypatch.delenv(f"BENCH_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bench(*arguments: str, code: int = 0) -> Any:
    """The result of a command that exits with `code`."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def refused(*arguments: str) -> str:
    """What a command says that is refused as a mistake of the user's."""
    result = bench(*arguments, code=2)
    assert not result.stdout
    return result.stderr


def test_everything_there_is_can_be_listed() -> None:
    assert "beit:random-masking" in bench("list", "methods").stdout
    assert "demo-seg" in bench("list", "tasks").stdout
    assert {row["study"] for row in json.loads(bench("list", "studies", "--json").stdout)} >= {"demo"}
    assert bench("list", "runs").stdout == "none\n"


def test_a_plan_shows_stages_costs_and_departures() -> None:
    text = bench("plan", *VIT).stdout
    assert "supervised vit demo seed 0" in text
    assert "pending" in text
    assert "2 stages, 0 done, 2 to do" in text
    assert "supervised.batch_size" in text
    assert "4096" in text
    assert "--set" in text
    assert not Path("results").exists()


def test_a_plan_for_programs_holds_all_of_it() -> None:
    body = json.loads(bench("plan", *VIT, "--json").stdout)
    assert [stage["stage"]["kind"] for stage in body["stages"]] == ["supervised", "evaluate"]
    assert body["stages"][0]["steps"] == 40
    assert body["stages"][0]["state"] == "pending"
    assert body["arms"][0]["id"] == "vit/nano/demo/default"
    assert body["departures"]


def test_a_plan_explains_a_value() -> None:
    lines = bench("plan", *VIT, "--set", "supervised.lr=2e-3", "--explain", "supervised.lr").stdout.splitlines()
    assert lines[0] == "vit, supervised: 0.002"
    assert lines[1].startswith("  0.003  P-ViT")
    assert lines[-1] == "  0.002  --set"


def test_flags_change_a_study(here: Path) -> None:
    study = here / "own.toml"
    study.write_text('tasks = ["demo"]\nsize = "base"\n[[arms]]\nmethod = "vit"\nsize = "small"\nseeds = [7]\n')
    body = json.loads(bench("plan", str(study), "--size", "nano", "--seeds", "0,3", "--json").stdout)
    assert body["study"]["name"] == "own"
    assert {stage["stage"]["model"]["size"] for stage in body["stages"]} == {"nano"}
    assert sorted(body["arms"][0]["stages"]) == ["0", "3"]


def test_a_dry_run_shows_the_plan_and_leaves_nothing(here: Path) -> None:
    shown = bench("run", *VIT, "--dry-run", "--output-dir", str(here / "never")).stdout
    assert shown == bench("plan", *VIT, "--output-dir", str(here / "never")).stdout
    assert not (here / "never").exists()


def test_underscores_are_taken_for_dashes() -> None:
    assert bench("plan", *VIT, "--output_dir", "x", "--num_processes", "2", "--mixed_precision", "no").exit_code == 0


def test_precision_is_a_part_of_the_result() -> None:
    keys = [
        json.loads(bench("plan", *VIT, "--mixed-precision", precision, "--json").stdout)["stages"][0]["key"]
        for precision in ("no", "bf16")
    ]
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "demmo"], "Did you mean demo?"),
        (["plan", "-m", "bait", "-t", "demo"], "no method 'bait'"),
        (["plan", "-m", "vit", "-t", "dmo"], "Did you mean demo?"),
        (["plan", *VIT, "--set", "supervised.lrr=1"], "unknown key 'supervised.lrr'. Did you mean lr?"),
        (["plan", *VIT, "--set", "supervised.epochs=-3"], "epochs = -3"),
        (["plan", *VIT, "--set", "supervised.epochs"], "write KEY=VALUE"),
        (["plan", *VIT, "--seeds", "0,0"], "--seeds 0,0"),
        (["plan", *VIT, "--seeds", "a"], "--seeds a"),
        (["plan", *VIT, "--mixed-precision", "fp8"], "--mixed-precision fp8: write no, bf16, fp16 or auto"),
        (["plan", *VIT, "--num-processes", "3"], "a batch of 50 does not divide among 3 processes"),
        (["plan", *VIT, "--limit", "-1"], "limit = -1"),
        (["plan", *VIT, "--unlabelled", "nowhere"], "--unlabelled nowhere: no such folder"),
        (["plan", *VIT, "--data-dir", "folde=x"], "no task 'folde'"),
        (["run", *VIT, "--name", "../up"], "a study cannot be called '../up'"),
        (["plan", *VIT, "--include", "nowhere"], "--include nowhere: no such folder"),
        (["plan"], "nothing to compare: name a study ("),
        (["plan", "demo", "--method", "vit"], "not both"),
        (["plan", "--method", "vit"], "--method needs --task"),
        (["plan", "-m", "vit", "-t", "folder"], "give --data-dir PATH"),
        (["plan", "missing.toml"], "missing.toml: no such file"),
        (["compare", "demo"], "no study that was run 'demo'"),
        (["show", "x"], "no run 'x'"),
        (["validate", "none.toml"], "none.toml: no such file"),
        (["list", "method"], "method"),
        (["plan", *VIT, "--sizes", "nano"], "--size"),
        (["pln"], "plan"),
    ],
    ids=lambda value: " ".join(value[-3:]) if isinstance(value, list) else "",
)
def test_a_mistake_is_named_on_stderr_with_what_would_work(arguments: list[str], message: str) -> None:
    assert message in refused(*arguments)


def test_an_output_folder_that_cannot_be_written_is_named(here: Path) -> None:
    (here / "file").write_text("in the way")
    assert "file/runs: Not a directory" in refused("run", *VIT, *SHORT, "-o", "file")


def test_variables_of_the_environment_set_values_and_their_typos_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_SUPERVISED_LR", "0.25")
    assert "vit, supervised: 0.25" in bench("plan", *VIT[:6], "--explain", "supervised.lr").stdout
    monkeypatch.setenv("BENCH_SUPERVISD_LR", "0.25")
    assert "BENCH_SUPERVISD_LR in the environment is not a setting of bench" in refused("plan", *VIT)


def test_data_lie_where_the_flag_or_the_environment_says(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_DATA_DIR", str(here / "a place"))
    assert f"{here / 'a place'}" in refused("plan", "-m", "vit", "-t", "folder")
    assert f"{here / 'other'}" in refused("plan", "-m", "vit", "-t", "folder", "--data-dir", "folder=other")


def test_files_are_validated(here: Path) -> None:
    path = here / "task.toml"
    path.write_text('dataset = "demo"\nsplits = { train = "train", vall = "val" }\n')
    assert "vall" in refused("validate", str(path))
    path.write_text('dataset = "demo"\nsplits = { train = "train", val = "val" }\n')
    assert bench("validate", str(path)).stdout == f"{path}: a task\n"


def test_versions_are_told() -> None:
    assert bench("version").stdout.startswith("bench 0.")
    assert "torch " in bench("version").stdout


def test_a_run_of_another_version_is_listed_and_said(here: Path) -> None:
    data = {"train": Data(dataset="demo", split="train", identity="x", images=5)}
    stage = Stage(kind="supervised", method="vit", task="demo", model=Model(), recipe=Recipe(), protocol=Protocol(),
                  data=data)  # fmt: skip
    run = Run.open(here / "results" / "runs", stage)
    body = json.loads(run.path("stage.json").read_text())
    run.path("stage.json").write_text(json.dumps({**body, "format": 99}))
    assert "written by another version of bench" in bench("list", "runs").stdout
    assert "written by another version of bench" in refused("show", run.root.name)


def test_a_comparison_from_one_end_to_the_other() -> None:
    """A real one: trained, scored, run again, shown, compared."""
    ran = bench("run", *VIT, *SHORT, "--name", "mine")
    assert "mine: 2 stages: 2 done" in ran.stdout
    assert "report: bench compare mine" in ran.stdout
    assert "done    supervised vit demo seed 0" in ran.stderr
    again = json.loads(bench("run", *VIT, *SHORT, "--name", "mine", "--json").stdout)
    assert again["exit_code"] == 0
    assert [stage["fate"] for stage in again["stages"]] == ["done", "done"]
    runs = json.loads(bench("list", "runs", "--json").stdout)
    assert {run["state"] for run in runs} == {"done"}
    assert any("top1" in run["result"] for run in runs)
    shown = bench("show", "supervised-").stdout
    assert "supervised vit demo seed 0: done, step 8 of 8" in shown
    assert "recipe.epochs" in shown
    assert json.loads(bench("show", "evaluate-", "--json").stdout)["results"]["reportable"] is False
    compared = bench("compare", "mine").stdout
    assert "results/reports/mine/report.md" in compared
    assert "not reportable" in Path("results/reports/mine/report.md").read_text()
    runs_folder = Path("results/runs")
    next(runs_folder.glob("evaluate-*/predictions.parquet")).unlink()
    assert "missing" in bench("compare", "mine", code=4).stdout


def test_seeds_are_added_by_an_option() -> None:
    assert "--add-seeds" in bench("run", "--help").stdout


def test_a_study_on_published_data_is_planned_before_anybody_has_them() -> None:
    text = bench("plan", "beit-table4").stdout
    assert "imagenet/train  1,281,167  all     not looked at" in text
    assert "without sharing 42 stages" in text
    assert text.count("pretrain beit:pixels imagenet1k") == 1
    assert "imagenet" in refused("run", "beit-table4")
