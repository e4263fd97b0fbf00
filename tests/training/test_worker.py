"""A launched process from end to end: every method's stages, what they leave behind, and how they fail."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from small import TRAINED, prepared, small_plan

from bench.checkpoints.weights import load_weights
from bench.config.schema import Protocol
from bench.errors import ExitCode
from bench.files import write_json
from bench.launch.signals import Stop
from bench.training import worker
from bench.training.build import load_trained, objective


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "scenes"))


@pytest.mark.parametrize("method", TRAINED)
def test_every_stage_of_a_method_is_trained_and_the_last_is_scored(tmp_path, method):
    runs = prepared(tmp_path, small_plan(tmp_path, method))
    assert worker.main([str(run.root) for run in runs.values()]) == 0
    for kind, run in runs.items():
        assert run.is_done(), kind
        run.check()
        assert run.path("pictures.npz").exists()
        assert not run.path("checkpoints").exists()
    results = runs["evaluate"].results()
    frame = pd.read_parquet(runs["evaluate"].path("predictions.parquet"))
    assert len(frame) == results["n"] == 64
    assert results["metrics"]["top1"] == pytest.approx(100 * frame["correct"].mean())
    assert Protocol(**results["protocol"]) == runs["evaluate"].stage().protocol


def test_label_maps_are_learned_after_labels(tmp_path):
    runs = prepared(tmp_path, small_plan(tmp_path, "vit", task="small-seg"))
    assert worker.main([str(run.root) for run in runs.values()]) == 0
    results = runs["evaluate"].results()
    assert 0 < results["metrics"]["mIoU"] < 100
    assert len(results["per_class"]) == 11
    with np.load(runs["evaluate"].path("pictures.npz")) as pictures:
        assert pictures["map"].shape == pictures["prediction"].shape == (32, 48, 48)


def test_the_curve_ends_where_the_evaluation_begins(tmp_path):
    runs = prepared(tmp_path, small_plan(tmp_path, "vit", model_ema=0.5))
    worker.main([str(runs["supervised"].root), str(runs["evaluate"].root)])
    curve = {r.metric: r.value for r in runs["supervised"].records() if r.split == "val" and r.step == 8}
    metrics = runs["evaluate"].results()["metrics"]
    assert curve == pytest.approx({name: metrics[name] for name in curve})
    assert "top1_ema" in curve


def test_a_stage_starts_from_the_weights_of_the_one_before(tmp_path):
    runs = prepared(tmp_path, small_plan(tmp_path, "beit"))
    worker.main([str(runs["tokenizer"].root), str(runs["pretrain"].root)])
    learned = load_weights(runs["pretrain"].path("final", "model.safetensors"))
    started = objective(runs["finetune"].stage(), runs["finetune"]).state_dict()
    for name in ("backbone.blocks.0.attn.qkv.weight", "backbone.patch_embed.proj.weight", "backbone.pos_embed"):
        assert torch.equal(started[name], learned[name])


def test_starting_weights_belong_to_the_seed(tmp_path):
    plan = small_plan(tmp_path, "vit")
    run = prepared(tmp_path, plan)["supervised"]
    first, again = (objective(run.stage(), run).state_dict() for _ in range(2))
    other = objective(run.stage().model_copy(update={"seed": 1}), run).state_dict()
    name = "backbone.blocks.0.mlp.fc1.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_a_finished_stage_can_be_built_again(tmp_path):
    runs = prepared(tmp_path, small_plan(tmp_path, "deit"))
    worker.main([str(runs["teacher"].root), str(runs["supervised"].root)])
    built = load_trained(runs["supervised"])
    saved = load_weights(runs["supervised"].path("final", "model.safetensors"))
    assert built.trainable_state().keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in built.trainable_state().items())
    assert not any(name.startswith("teacher.") for name in saved)


def test_a_probe_also_tells_what_nearest_neighbours_say(tmp_path):
    plan = small_plan(tmp_path, "data2vec")
    runs = prepared(tmp_path, plan)
    worker.main([str(runs["pretrain"].root)])
    stage = next(stage for stage in plan.stages.values() if stage.kind == "finetune")
    probe = stage.model_copy(update={"kind": "probe", "options": {}})
    run = runs["finetune"].open(tmp_path / "runs", probe)
    write_json(run.path("launch.json"), json.loads(runs["finetune"].path("launch.json").read_text()))
    assert worker.main([str(run.root)]) == 0
    assert 0 <= run.results()["metrics"]["knn_top1"] <= 100
    learned = load_weights(runs["pretrain"].path("final", "model.safetensors"))
    weights = load_weights(run.path("final", "model.safetensors"))
    assert torch.equal(weights["backbone.blocks.3.mlp.fc2.weight"], learned["backbone.blocks.3.mlp.fc2.weight"])


def test_a_finished_stage_is_not_computed_again(tmp_path):
    run = prepared(tmp_path, small_plan(tmp_path, "vit"))["supervised"]
    worker.main([str(run.root)])
    before = run.path("results.json").stat().st_mtime_ns
    assert worker.main([str(run.root)]) == 0
    assert run.path("results.json").stat().st_mtime_ns == before


def test_a_folder_in_use_is_left_alone(tmp_path):
    run = prepared(tmp_path, small_plan(tmp_path, "vit"))["supervised"]
    with run.lease():
        assert worker.main([str(run.root)]) == ExitCode.BUSY
    assert run.status().state == "pending"


def test_a_failure_is_told_in_the_run_folder(tmp_path):
    runs = prepared(tmp_path, small_plan(tmp_path, "beit"))
    assert worker.main([str(runs["finetune"].root)]) == 1
    status = runs["finetune"].status()
    assert status.state == "failed"
    assert "no such file; run the stage it belongs to again" in status.error


def test_data_that_changed_are_refused(tmp_path):
    plan = small_plan(tmp_path, "vit")
    stage = next(stage for stage in plan.stages.values() if stage.kind == "supervised")
    changed = stage.data | {"train": stage.data["train"].model_copy(update={"identity": "something else"})}
    run = prepared(
        tmp_path, plan.model_copy(update={"stages": {stage.key: stage.model_copy(update={"data": changed})}})
    )
    assert worker.main([str(run["supervised"].root)]) == 1
    assert "demo/train has changed since the stage was planned" in run["supervised"].status().error


def test_a_stage_asked_to_stop_says_where_it_is(tmp_path):
    run = prepared(tmp_path, small_plan(tmp_path, "vit"))["supervised"]
    stop = Stop()
    stop.ask()
    assert worker.work(run, stop) == 75
    status = run.status()
    assert (status.state, status.step, status.steps) == ("interrupted", 1, 8)
    assert worker.main([str(run.root)]) == 0
    assert run.results()["steps"] == 8
    assert [attempt["event"] for attempt in run.attempts()] == ["started", "interrupted", "started", "done"]


@pytest.mark.parametrize("method", ["vit", "beit"])
def test_computing_blocks_again_to_save_memory_does_not_change_the_result(tmp_path, method):
    kind = TRAINED[method][-1]
    plan = small_plan(tmp_path, method, only=kind, dropout=0.1, drop_path=0.2)
    plain = prepared(tmp_path / "plain", plan)
    names = [kind for kind in plain if kind != "evaluate"]
    assert worker.main([str(plain[name].root) for name in names]) == 0
    saving = prepared(tmp_path / "saving", plan)[kind]
    settings = json.loads(plain[kind].path("launch.json").read_text())
    write_json(saving.path("launch.json"), settings | {"gradient_checkpointing": True})
    assert worker.main([str(saving.root)]) == 0
    first, second = (load_weights(run.path("final", "model.safetensors")) for run in (plain[kind], saving))
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
