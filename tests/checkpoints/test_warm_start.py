"""start_from: a stage begins with weights from outside, which are part of its key and of all that comes from it."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from small import CLASSIFY, prepared
from typer.testing import CliRunner

from bench.checkpoints import conversion, exporter
from bench.checkpoints.locate import IMPORTED, OURS, locate
from bench.checkpoints.warm_start import check_starts
from bench.cli.app import app
from bench.config.precedence import UserOverrides
from bench.config.registry import places
from bench.config.schema import Arm, Model, Study
from bench.config.stage import Plan, Stage
from bench.errors import BenchError
from bench.methods.masked_images import Recover
from bench.models.backbone import build
from bench.planning.planner import make_plan, plan_with_history
from bench.planning.request import WITHOUT_DATA, Request
from bench.seeding import seed_all
from bench.training import build as building
from bench.training import worker

NANO = Model(trunk="beit", size="nano", width=96, depth=4, heads=3, image_size=48, patch_size=8)
LAST = {"data2vec": "finetune", "deit": "supervised"}
PLUS = NANO.model_copy(update={"position": "shared-relative", "layer_scale": 0.1})
FITS = {"finetune.model.position": "relative", "finetune.model.layer_scale": 0.1}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "scenes"))


def pretrained(folder: Path, model: Model = PLUS, seed: int = 0) -> Path:
    """A Hugging Face folder of a pretrained network, every number of it drawn."""
    seed_all(seed)
    network = Recover(build(model, mask_token=True), 32, predict_all=False)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    conversion.write(network, model, "token", "hf", folder)
    return folder


def plan(method: str = "data2vec", *, study: dict[str, Any] | None = None, **sets: Any) -> Plan:
    body = {"name": "s", "tasks": ("demo",), "size": "nano", "arms": (Arm(method=method),), **(study or {})}
    user_overrides = UserOverrides(sets={name.replace("__", "."): value for name, value in sets.items()})
    return make_plan(Request(Study(**body), places(), user_overrides))


def kinds(planned: Plan) -> list[str]:
    return [stage.kind for stage in planned.stages.values()]


def the(planned: Plan, kind: str) -> Stage:
    (stage,) = [stage for stage in planned.stages.values() if stage.kind == kind]
    return stage


def small(folder: Path, method: str, only: str, **values: Any) -> dict[str, Any]:
    """Prepared runs on a few images, by kind. values: of the stage `only`, which starts from weights from outside."""
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    (folder / "tasks" / "small.toml").write_text(CLASSIFY)
    common = {"batch_size": 16, "epochs": 1, "warmup_epochs": 0, "eval_every_epochs": 0, "precision": "fp32"}
    kinds = dict.fromkeys([only, LAST[method]])
    sets = {f"{kind}.{name}": value for kind in kinds for name, value in common.items()}
    sets |= {f"{only}.{name}": value for name, value in values.items()}
    if method == "deit":
        sets["teacher.model.trunk"] = "timm:resnet10t"
    study = Study(name="small", arms=(Arm(method=method),), tasks=("small",), size="nano")
    return prepared(folder, make_plan(Request(study, (folder / "tasks",), UserOverrides(sets=sets))))


def test_the_stages_that_the_weights_replace_are_left_out(tmp_path):
    source = str(pretrained(tmp_path / "m"))
    assert kinds(plan(finetune__start_from=source)) == ["finetune", "evaluate"]
    assert kinds(plan("beit", finetune__start_from=source)) == ["finetune", "evaluate"]
    assert kinds(plan("beit", pretrain__start_from=source)) == ["tokenizer", "pretrain", "finetune", "evaluate"]
    assert kinds(plan("deit", supervised__start_from=source)) == ["teacher", "supervised", "evaluate"]
    assert kinds(plan("beit:probe", probe__start_from=source)) == ["probe", "evaluate"]


def test_a_value_for_a_stage_that_is_left_out_is_refused(tmp_path):
    with pytest.raises(BenchError, match=r"'pretrain.lr' was set, but no stage has this value"):
        plan(finetune__start_from=str(pretrained(tmp_path / "m")), pretrain__lr=1.0)


def test_the_key_is_of_what_the_weights_are_and_not_of_where_they_lie(tmp_path):
    first, moved = pretrained(tmp_path / "a"), pretrained(tmp_path / "deep" / "b")
    other = pretrained(tmp_path / "c", seed=1)
    keys = [the(plan(finetune__start_from=str(path)), "finetune").key for path in (first, moved, other)]
    assert keys[0] == keys[1] != keys[2]
    scored = [the(plan(finetune__start_from=str(path)), "evaluate").key for path in (first, other)]
    assert scored[0] != scored[1]


def test_a_stage_without_foreign_weights_has_nothing_of_them_in_its_identity():
    identity = the(plan(), "finetune").identity()
    assert "start" not in identity
    assert not {"start_from", "start_partial"} & identity["recipe"].keys()


def test_any_file_may_name_the_weights(tmp_path):
    source = str(pretrained(tmp_path / "m"))
    wanted = the(plan(finetune__start_from=source), "finetune").key
    arm = (Arm(method="data2vec", set={"finetune.start_from": source}),)
    assert the(plan(study={"arms": arm}), "finetune").key == wanted
    in_study = the(plan(study={"recipe": {"finetune": {"start_from": source}}}), "finetune")
    assert (in_study.key, in_study.origins["recipe.start_from"]) == (wanted, "study s")
    assert the(plan(study={"methods": {"data2vec": {"finetune": {"start_from": source}}}}), "finetune").key == wanted
    own = f"start_from = {source!r}\n"
    for budget, where in (("", "[recipe.finetune]\n"), ("own", "[budgets.own.recipe.finetune]\n")):
        task = CLASSIFY.replace(where, where + own) if where in CLASSIFY else CLASSIFY + where + own
        (tmp_path / "mine.toml").write_text(task)
        mine = Study(name="s", tasks=("mine",), size="nano", budget=budget, arms=(Arm(method="data2vec"),))
        start = the(
            make_plan(Request(mine, places([tmp_path]), UserOverrides(sets={"finetune.batch_size": 16}))), "finetune"
        ).start
        assert start is not None
        assert start.digest == locate(source).digest


def test_unknown_weights_are_an_error_with_what_could_be_written(tmp_path):
    with pytest.raises(BenchError, match=r"no weights 'nix' .* hub id like"):
        plan(finetune__start_from="nix")
    with pytest.raises(BenchError, match=r"unknown key 'finetune.start_form'. Did you mean start_from\?"):
        plan(finetune__start_form="nix")


def test_a_plan_that_looks_at_nothing_looks_at_no_weights():
    study = Study(
        name="s", tasks=("demo",), size="nano", arms=(Arm(method="vit", set={"supervised.start_from": "a/b"}),)
    )
    (stage,) = [
        s
        for s in plan_with_history(Request(study, places()), WITHOUT_DATA).plan.stages.values()
        if s.kind == "supervised"
    ]
    assert stage.start is not None
    assert stage.start.id == "a/b"


def test_the_arm_and_its_departures_name_the_weights(tmp_path):
    planned = plan(finetune__start_from=str(pretrained(tmp_path / "m")))
    stage = the(planned, "finetune")
    assert stage.start is not None
    assert planned.arms[0].label == "data2vec from m"
    assert stage.departures["recipe.start_from"] == ("", f"m (sha256 {stage.start.digest[:12]})")
    assert str(tmp_path) not in json.dumps(stage.departures)


def test_the_authors_hand_over_is_made(tmp_path):
    source = pretrained(tmp_path / "m", PLUS.model_copy(update={"image_size": 64}))
    run = small(tmp_path, "data2vec", start_from=str(source), only="finetune")["finetune"]
    started = building.objective(run.stage(), run).state_dict()
    state = conversion.read(source).state
    for name in ("backbone.blocks.2.attn.qkv.weight", "backbone.cls_token", "backbone.blocks.0.gamma_1"):
        assert torch.equal(started[name], state[name])
    tables = [started[f"backbone.blocks.{block}.attn.relative_position_bias_table"] for block in range(4)]
    assert all(torch.equal(table, tables[0]) for table in tables)
    assert tables[0].shape == (11 * 11 + 3, 3)  # 6 x 6 patches, from 8 x 8
    torch.testing.assert_close(tables[0][-3:], state["backbone.rel_pos_bias.relative_position_bias_table"][-3:])
    report = json.loads(run.path("start.json").read_text())
    assert report["facts"]["digest"] == locate(str(source)).digest
    assert report["facts"]["purpose"] == "pretrain"
    assert len(report["shared"]) == 4
    assert {"head.head.weight", "head.fc_norm.weight"} <= set(report["missing"])
    assert "backbone.mask_token" in report["left"]


def test_it_trains_and_is_scored_from_there(tmp_path):
    source = pretrained(tmp_path / "m")
    runs = small(tmp_path, "data2vec", start_from=str(source), only="finetune", epochs=0.25)
    assert worker.main([str(run.root) for run in runs.values()]) == 0
    assert "start.json" in runs["finetune"].status().outputs
    assert runs["evaluate"].results()["n"] == 64
    exporter.export(runs["evaluate"], "hf", tmp_path / "card", output=tmp_path)
    assert "starts from m (sha256" in (tmp_path / "card" / "README.md").read_text()
    text = CliRunner().invoke(app, ["show", str(runs["evaluate"].root)]).output
    assert f"pretrained weights, finetune: m, sha256 {locate(str(source)).digest}" in text


def test_a_teacher_of_itself_starts_as_its_student(tmp_path):
    source = pretrained(tmp_path / "m", PLUS.model_copy(update={"layer_scale": 1e-4}))
    run = small(tmp_path, "data2vec", start_from=str(source), only="pretrain")["pretrain"]
    objective: Any = building.objective(run.stage(), run)
    weight = conversion.read(source).state["backbone.blocks.0.mlp.fc1.weight"]
    for backbone in (objective.backbone, objective.teacher):
        assert torch.equal(backbone.blocks[0].mlp.fc1.weight, weight)


def test_weights_without_a_mask_token_start_a_pretraining_with_a_new_one(tmp_path):
    source = pretrained(tmp_path / "m", PLUS.model_copy(update={"layer_scale": 1e-4}))
    config = json.loads((source / "config.json").read_text()) | {"use_mask_token": False}
    (source / "config.json").write_text(json.dumps(config))
    state = {name: value for name, value in load_file(source / "model.safetensors").items() if "mask_token" not in name}
    save_file(state, source / "model.safetensors")
    run = small(tmp_path, "data2vec", start_from=str(source), only="pretrain")["pretrain"]
    building.objective(run.stage(), run)
    assert "backbone.mask_token" in json.loads(run.path("start.json").read_text())["missing"]


def test_a_network_that_does_not_fit_says_what_would(tmp_path):
    source = str(pretrained(tmp_path / "m"))
    planned = plan(finetune__start_from=source)
    with pytest.raises(BenchError) as caught:
        check_starts(planned.stages.values(), tmp_path)
    fits = "--set finetune.model.position=relative --set finetune.model.layer_scale=0.1"
    assert fits in str(caught.value)
    check_starts(plan(finetune__start_from=source, **_under(FITS)).stages.values(), tmp_path)
    wide = plan(finetune__start_from=source, study={"size": "tiny"}, **_under(FITS))
    with pytest.raises(BenchError, match=r"width is 96 there, 192 here; depth is 4 .*\(that is --size nano\)"):
        check_starts(wide.stages.values(), tmp_path)


def _under(values: dict[str, Any]) -> dict[str, Any]:
    return {name.replace(".", "__"): value for name, value in values.items()}


def test_something_unexpected_stops_unless_it_may_be_left_out(tmp_path):
    source = pretrained(tmp_path / "m")
    state = load_file(source / "model.safetensors") | {"beit.surprise": torch.ones(2)}
    save_file(state, source / "model.safetensors")
    run = small(tmp_path / "a", "data2vec", start_from=str(source), only="finetune")["finetune"]
    with pytest.raises(BenchError, match=r"beit\.surprise"):
        building.objective(run.stage(), run)
    partial = small(tmp_path / "b", "data2vec", start_from=str(source), start_partial=True, only="finetune")["finetune"]
    building.objective(partial.stage(), partial)
    assert json.loads(partial.path("start.json").read_text())["unexpected"] == ["beit.surprise"]
    assert partial.stage().key != run.stage().key


def test_weights_that_changed_since_the_plan_are_refused(tmp_path):
    source = pretrained(tmp_path / "m")
    run = small(tmp_path, "data2vec", start_from=str(source), only="finetune")["finetune"]
    pretrained(source, seed=1)
    with pytest.raises(BenchError, match=r"holds other weights \(sha256 .*\) than when the stage was planned"):
        building.objective(run.stage(), run)


def test_a_convolutional_teacher_starts_from_timms_weights_with_a_new_classifier(tmp_path):
    seed_all(0)
    theirs = timm.create_model("resnet10t", num_classes=7)
    save_file(theirs.state_dict(), tmp_path / "teacher.safetensors")
    sets = {"start_from": str(tmp_path / "teacher.safetensors")}
    run = small(tmp_path, "deit", only="teacher", **sets)["teacher"]
    objective: Any = building.objective(run.stage(), run)
    started = objective.backbone.state_dict()
    assert torch.equal(started["conv1.0.weight"], theirs.state_dict()["conv1.0.weight"])
    assert started["fc.weight"].shape == (10, 512)
    report = json.loads(run.path("start.json").read_text())
    assert report["left"] == ["fc.bias", "fc.weight"]
    assert report["missing"] == ["backbone.fc.bias", "backbone.fc.weight"]


def test_an_import_can_be_used_where_there_is_no_network(tmp_path):
    source = pretrained(tmp_path / "m")
    done = CliRunner().invoke(app, ["import", str(source), "--to", str(tmp_path / "i")])
    assert done.exit_code == 0, done.output
    assert "backbone.blocks.0-3.attn.qkv.weight" in done.output
    assert "positions      shared-relative" in done.output
    assert sorted(path.name for path in (tmp_path / "i").iterdir()) == ["final", IMPORTED]
    first, again = (the(plan(finetune__start_from=str(path)), "finetune") for path in (source, tmp_path / "i"))
    assert first.key == again.key
    state = load_file(tmp_path / "i" / OURS)
    assert all(torch.equal(value, state[name]) for name, value in conversion.read(source).state.items())
    body = CliRunner().invoke(app, ["import", str(tmp_path / "i"), "--json"])
    facts = json.loads(body.stdout)
    assert (facts["digest"], facts["purpose"]) == (locate(str(source)).digest, "pretrain")
    assert facts["model"]["position"] == "shared-relative"


def test_an_import_goes_into_no_folder_with_other_things(tmp_path):
    source = pretrained(tmp_path / "m")
    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "notes.txt").write_text("mine")
    done = CliRunner().invoke(app, ["import", str(source), "--to", str(tmp_path / "i")])
    assert done.exit_code == 2
    assert "is not empty and no import wrote it" in done.output
