"""Run folders: whole or absent, found again, held by one."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench import environment
from bench.config.schema import Model, Protocol, Recipe, Study
from bench.config.stage import Data, Plan, Stage
from bench.errors import BenchError
from bench.files import append_lines, read_json, write_atomic
from bench.runs import lease, store
from bench.runs.lease import Busy
from bench.runs.run import Record, Run


def a_stage(seed: int = 0) -> Stage:
    data = {"train": Data(dataset="demo", split="train", identity="abc", images=500)}
    return Stage(
        kind="supervised", method="vit", task="demo", seed=seed, model=Model(), recipe=Recipe(), protocol=Protocol(),
        data=data,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.open(tmp_path / "runs", a_stage())


def finished(run: Run) -> Run:
    run.path("final").mkdir()
    run.path("final", "model.safetensors").write_bytes(b"weights")
    run.finish({"steps": 7, "metrics": {"top1": 91.5}}, ["final/model.safetensors"])
    return run


def records(*steps: int) -> list[Record]:
    return [Record(step, step / 10, 50 * step, 0.5 * step, "train", "loss", 1.0 / step) for step in steps]


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_atomic(tmp_path / "deep" / "a.txt", "one")
    write_atomic(tmp_path / "deep" / "a.txt", b"two")
    assert (tmp_path / "deep" / "a.txt").read_bytes() == b"two"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.txt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match=r"cannot write .*file/a.txt.*choose another --output-dir"):
        write_atomic(tmp_path / "file" / "a.txt", "x")


def test_a_run_is_found_again_and_is_pending_at_first(tmp_path: Path, run: Run) -> None:
    assert Run.open(tmp_path / "runs", a_stage()) == run
    assert run.stage() == a_stage()
    assert run.status().state == "pending"
    assert not run.is_done()
    assert run.records() == []


def test_two_stages_have_two_folders(tmp_path: Path, run: Run) -> None:
    assert Run.open(tmp_path / "runs", a_stage(seed=1)).root != run.root


def test_a_finished_run_keeps_its_results(run: Run) -> None:
    finished(run)
    run.check()
    assert run.is_done()
    assert run.status().step == 7
    assert run.results()["metrics"] == {"top1": 91.5}


def test_a_run_whose_output_was_cut_short_or_deleted_is_not_done(run: Run) -> None:
    path = finished(run).path("final", "model.safetensors")
    path.write_bytes(b"weigh")
    assert not run.is_done()
    path.unlink()
    assert not run.is_done()
    with pytest.raises(BenchError, match=r"model.safetensors is missing; delete .* to compute it again"):
        run.check()


def test_a_changed_byte_is_found_by_its_hash(run: Run) -> None:
    finished(run).path("final", "model.safetensors").write_bytes(b"weighty")
    assert run.is_done()
    with pytest.raises(BenchError, match=r"model.safetensors is damaged"):
        run.check()


def test_a_run_is_done_only_when_its_results_are_written(run: Run) -> None:
    with pytest.raises(FileNotFoundError):
        run.finish({}, ["final/model.safetensors"])
    assert run.status().state == "pending"


def test_a_run_of_another_version_is_refused_with_what_helps(run: Run) -> None:
    body = json.loads(run.path("stage.json").read_text())
    run.path("stage.json").write_text(json.dumps({**body, "format": 99}))
    with pytest.raises(BenchError, match=r"written by another version of bench \(format 99.*another --output-dir"):
        run.stage()
    body["stage"]["recipe"]["warp"] = 9
    run.path("stage.json").write_text(json.dumps(body))
    with pytest.raises(BenchError, match=r"unknown key 'recipe.warp'.*written by bench .*another --output-dir"):
        run.stage()


def test_a_run_whose_key_is_counted_otherwise_now_is_refused(run: Run) -> None:
    body = json.loads(run.path("stage.json").read_text())
    run.path("stage.json").write_text(json.dumps({**body, "key": "0" * 24}))
    with pytest.raises(BenchError, match="count different things as part of a stage"):
        run.stage()


def test_a_damaged_file_is_named(run: Run) -> None:
    run.path("stage.json").write_text('{"format": 1, "sta')
    with pytest.raises(BenchError, match=r"stage.json is damaged"):
        run.stage()


def test_records_come_back_as_they_were_written(run: Run) -> None:
    run.append(records(1, 2))
    run.append([replace(records(3)[0], value=math.nan)])
    rows = run.records()
    assert rows[:2] == records(1, 2)
    assert math.isnan(rows[2].value)
    assert "NaN" not in run.path("records.jsonl").read_text()


def test_a_last_line_cut_short_by_a_crash_is_left_out(run: Run) -> None:
    run.append(records(1, 2))
    with run.path("records.jsonl").open("a") as file:
        file.write('{"step": 3, "epo')
    assert run.records() == records(1, 2)
    run.rewind(2)
    run.append(records(3))
    assert run.records() == records(1, 2, 3)


@pytest.mark.parametrize("damage", ['{"step": 1}', "not json", ""])
def test_a_damaged_line_in_the_middle_is_named(run: Run, damage: str) -> None:
    run.append(records(1))
    with run.path("records.jsonl").open("a") as file:
        file.write(f"{damage}\n")
    run.append(records(2))
    with pytest.raises(BenchError, match=r"records.jsonl, line 2 is damaged.*delete .* to compute it again"):
        run.records()


def test_a_resumed_run_records_nothing_twice(run: Run) -> None:
    run.append(records(1, 2, 3, 4))
    run.rewind(2)
    run.append(records(3, 4))
    assert [record.step for record in run.records()] == [1, 2, 3, 4]


def test_only_one_holds_a_lease(run: Run) -> None:
    with run.lease() as claim:
        assert run.holder() is not None
        with pytest.raises(Busy, match=f"in use by process {os.getpid()}"), run.lease():
            pass
        assert not claim.lost
    assert run.holder() is None
    with run.lease():
        pass


HOLD = """
import sys, time
from pathlib import Path
from bench.runs.run import Run
run = Run(Path(sys.argv[1]))
with run.lease():
    run.set_status("running", step=3, steps=9)
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def dead(run: Run) -> Iterator[int]:
    """The number of a process that held the lease and was killed."""
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(run.root)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(Busy), run.lease():
        pass
    assert run.status().state == "running"
    child.send_signal(signal.SIGKILL)
    child.wait()
    yield child.pid


def test_a_killed_process_leaves_its_run_interrupted_and_free(run: Run, dead: int) -> None:
    assert run.path("lease.json").exists()
    assert run.holder() is None
    assert run.status().state == "interrupted"
    with run.lease():
        assert read_json(run.path("lease.json"))["pid"] == os.getpid()


def write_lease(run: Run, **changes: object) -> None:
    body = {"host": "elsewhere", "pid": 1, "born": "1", "token": "x", "time": time.time(), **changes}
    run.path("lease.json").write_text(json.dumps(body))


def test_a_holder_elsewhere_counts_while_its_heart_beats(run: Run) -> None:
    write_lease(run)
    with pytest.raises(Busy, match="process 1 on elsewhere"), run.lease():
        pass
    write_lease(run, time=time.time() - lease.STALE_SECONDS - 1)
    with run.lease():
        pass


def test_a_number_used_again_by_another_process_is_not_the_holder(run: Run) -> None:
    with run.lease():
        mine = read_json(run.path("lease.json"))
    write_lease(run, host=mine["host"], pid=os.getpid(), born="before")
    assert run.holder() is None


def test_a_heartbeat_renews_and_notices_a_takeover(run: Run) -> None:
    with run.lease():
        claim = lease.Lease(run.path("lease.json"))
        claim._mine = read_json(run.path("lease.json"))
        assert claim.renew()
        write_lease(run)
        assert not claim.renew()
    assert read_json(run.path("lease.json"))["token"] == "x"  # what another one holds is not removed


def test_a_run_can_begin_anew(run: Run) -> None:
    run.append(records(1))
    run.path("checkpoints").mkdir()
    finished(run)
    run.log_attempt("start")
    run.restart()
    assert run.status().state == "pending"
    assert run.records() == []
    assert not run.path("checkpoints").exists()
    assert len(run.attempts()) == 1


def test_runs_are_found_by_the_beginning_of_their_name_or_key(tmp_path: Path, run: Run) -> None:
    other = Run.open(tmp_path / "runs", a_stage(seed=1))
    assert store.find_run(tmp_path, run.root.name) == run
    assert store.find_run(tmp_path, run.root.name.partition("-")[2]) == run
    assert store.find_run(tmp_path, str(run.root)) == run
    with pytest.raises(BenchError, match="'supervised' is ambiguous"):
        store.find_run(tmp_path, "supervised")
    with pytest.raises(BenchError, match="no run 'supervized-'"):
        store.find_run(tmp_path, "supervized-")
    assert list(store.all_runs(tmp_path)) == sorted([run, other], key=lambda each: each.root)


def test_a_plan_is_kept_for_the_report(tmp_path: Path) -> None:
    plan = Plan(study=Study(name="mine", arms=()), arms=(), stages={a_stage().key: a_stage()})
    store.save_plan(tmp_path, plan)
    assert store.read_plan(tmp_path, "mine") == plan
    with pytest.raises(BenchError, match=r"no study that was run 'min'; available: mine. Did you mean mine\?"):
        store.read_plan(tmp_path, "min")


def test_the_environment_is_stored_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-value")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    facts = environment.environment()
    assert "secret-value" not in json.dumps(facts)
    assert facts["variables"]["OMP_NUM_THREADS"] == "1"
    assert facts["packages"]["torch"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = [shutil.which("mount") or "false", "-t", "tmpfs", "-o", "size=256k", "none", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here (needs root)")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_said_and_leaves_finished_runs_valid(small_disk: Path) -> None:
    done = finished(Run.open(small_disk / "runs", a_stage()))
    done.append(records(1))
    (small_disk / "ballast").write_bytes(b"x")
    with pytest.raises(OSError, match="No space"), (small_disk / "ballast").open("wb") as file:
        file.write(b"x" * 10**6)
    before = done.path("status.json").read_bytes()
    with pytest.raises(BenchError, match=r"cannot write .*status.json: No space left on device; make room"):
        done.set_status("failed", error="x" * 10_000)
    with pytest.raises(BenchError, match=r"records.jsonl: No space left"):
        append_lines(done.path("records.jsonl"), ["y" * 10_000])
    assert done.path("status.json").read_bytes() == before
    assert done.records() == records(1)
    done.check()
    assert not list(small_disk.rglob("*.tmp"))
