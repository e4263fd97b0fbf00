"""How a launch is laid out on this machine: devices, threads, configuration, environment."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bench.config.precedence import UserOverrides
from bench.config.registry import places
from bench.config.schema import Arm, Study
from bench.config.stage import Plan
from bench.errors import BenchError
from bench.launch import local
from bench.launch.local import Slot, accelerate_config, slots, visible_gpus
from bench.launch.settings import Resources, read_settings
from bench.planning.planner import make_plan
from bench.planning.request import Request
from bench.runs.run import Run


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with four GPUs visible, as somebody else's scheduler would say."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def small_plan(*methods: str) -> Plan:
    arms = tuple(Arm(method=method) for method in methods or ("vit",))
    user_overrides = UserOverrides(sets={"supervised.batch_size": 50})
    return make_plan(Request(Study(name="l", tasks=("demo",), size="nano", arms=arms), places(), user_overrides))


def test_a_cpu_is_shared_by_as_many_stages_as_the_plan_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "cores", lambda: 16)
    cpu = Resources(devices="cpu")
    assert slots(cpu, width=9) == [Slot((), 4)] * 4
    assert slots(cpu, width=1) == [Slot((), 16)]
    assert slots(Resources(devices="cpu", num_processes=8), width=9) == [Slot((), 1)] * 2
    monkeypatch.setattr(local, "cores", lambda: 1)
    assert slots(Resources(devices="cpu", num_processes=2), width=9) == [Slot((), 1)]


def test_threads_that_the_user_chose_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert slots(Resources(devices="cpu"), width=1)[0].threads == 3


@pytest.mark.usefixtures("gpus")
def test_devices_count_among_those_that_are_visible() -> None:
    assert visible_gpus("auto") == ["4", "5", "6", "7"]
    assert visible_gpus("0,2") == ["4", "6"]
    assert visible_gpus("cpu") == []
    assert [slot.gpus for slot in slots(Resources(devices="0,1,2,3"), width=9)] == [("4",), ("5",), ("6",), ("7",)]
    two = Resources(devices="0,1,2,3", num_processes=2)
    assert [slot.gpus for slot in slots(two, width=9)] == [("4", "5"), ("6", "7")]


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("devices", ["4", "0,x", "0,0", "gpu"])
def test_a_device_that_is_not_there_is_refused(devices: str) -> None:
    with pytest.raises(BenchError, match=rf"--devices {devices}: this process sees 4 GPUs, 0 to 3"):
        visible_gpus(devices)


@pytest.mark.usefixtures("gpus")
def test_more_processes_than_devices_are_refused() -> None:
    with pytest.raises(BenchError, match=r"--num-processes 3 is more than the 2 devices \(4, 5\)"):
        slots(Resources(devices="0,1", num_processes=3), width=1)


def test_hidden_devices_stay_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus("auto") == []
    with pytest.raises(BenchError, match="this process sees no GPU"):
        visible_gpus("0")


def test_a_configuration_leaves_nothing_to_the_users_defaults() -> None:
    single = yaml.safe_load(accelerate_config(Slot((), 2), 1))
    assert (single["distributed_type"], single["use_cpu"], single["num_processes"]) == ("NO", True, 1)
    pair = yaml.safe_load(accelerate_config(Slot(("4", "6"), 2), 2))
    assert (pair["distributed_type"], pair["use_cpu"], pair["gpu_ids"]) == ("MULTI_GPU", False, "4,6")
    for values in (single, pair):
        assert values["mixed_precision"] == "no"  # precision is the stage's, not the launcher's
        assert values["compute_environment"] == "LOCAL_MACHINE"


SPEAK = """
import json, os, sys
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
answer = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "KEPT")}
answer |= {"processes": accelerator.num_processes, "rank": accelerator.process_index, "folders": sys.argv[1:]}
print(json.dumps(answer), flush=True)
"""


def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slot: Slot, processes: int) -> list[dict[str, object]]:
    """What each process of a launch says of itself."""
    (tmp_path / "speak.py").write_text(SPEAK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("KEPT", "as it was")
    plan = small_plan()
    runs = {key: Run.open(tmp_path / "runs", stage) for key, stage in plan.stages.items()}
    resources = Resources(devices="cpu", num_processes=processes)
    launch = local.start(tuple(plan.stages.values()), runs, slot, resources, "speak")
    assert launch.process.wait(timeout=120) == 0, local.stderr_tail(launch)
    lines = launch.runs[0].path("stdout.log").read_text().splitlines()
    assert all(line.startswith(str(tmp_path)) for line in json.loads(lines[0])["folders"])
    return [json.loads(line) for line in lines]


def test_a_launch_starts_as_many_processes_as_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = launched(tmp_path, monkeypatch, Slot((), 1), processes=2)
    assert sorted(answer["rank"] for answer in answers) == [0, 1]  # type: ignore[type-var]
    assert [answer["processes"] for answer in answers] == [2, 2]


def test_a_launch_sees_its_own_devices_and_the_users_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    (answer,) = launched(tmp_path, monkeypatch, Slot(("6",), 2), processes=1)
    assert answer["CUDA_VISIBLE_DEVICES"] == "6"
    assert answer["OMP_NUM_THREADS"] == "2"
    assert answer["KEPT"] == "as it was"
    assert len(answer["folders"]) == 2  # type: ignore[arg-type]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"


def test_what_a_worker_is_told_lies_in_its_folder(tmp_path: Path) -> None:
    plan = small_plan("deit")
    runs = {key: Run.open(tmp_path / "runs", stage) for key, stage in plan.stages.items()}
    supervised = next(stage for stage in plan.stages.values() if stage.kind == "supervised")
    resources = Resources(micro_batch_size=25, workers=2, gradient_checkpointing=True)
    for stage in (supervised,):
        local._prepare(stage, runs[stage.key], runs, Slot((), 3), resources)
    settings = read_settings(runs[supervised.key])
    assert (settings.micro_batch_size, settings.workers, settings.threads, settings.device) == (25, 2, 3, "cpu")
    assert settings.gradient_checkpointing
    (teacher,) = supervised.parents.values()
    assert settings.parents == {teacher: str(runs[teacher].root)}


def test_a_micro_batch_larger_than_the_share_is_the_whole_share() -> None:
    plan = small_plan()
    local.check_batches(plan, Resources(micro_batch_size=4096))
    with pytest.raises(BenchError, match="vit, supervised: micro-batch 7 does not divide 50"):
        local.check_batches(plan, Resources(micro_batch_size=7))


def test_all_processes_of_a_launch_can_be_ended() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; print(1); time.sleep(600)'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    (child,) = local._descendants(process.pid)
    local.kill(local.Launch((), process, Slot((), 1), 0.0, 0))
    process.wait(timeout=30)
    assert process.stdout.read() == b""  # the pipe is closed only when the child is gone, too
    assert not Path(f"/proc/{child}/cmdline").exists() or not Path(f"/proc/{child}/cmdline").read_bytes()
