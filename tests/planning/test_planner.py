"""Study -> Plan: who decides what, which stages are shared, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import methods
from bench.cli.catalog import validate
from bench.config.overrides import from_environment, parse_address, parse_set, parse_value
from bench.config.precedence import UserOverrides, variants
from bench.config.registry import places, read_study, read_task, study_files, task_files
from bench.config.resolve import steps_of
from bench.config.schema import Arm, Study
from bench.config.stage import Plan, Stage
from bench.errors import BenchError
from bench.planning.planner import explain, make_plan, plan_with_history
from bench.planning.request import WITHOUT_DATA, Request

TASK = """
dataset = "demo"
classes = 10
image_size = 48
patch_size = 8
splits = { train = "train", val = "val" }
[protocol]
resolution = 48
[recipe.supervised]
epochs = 20
warmup_steps = 0
batch_size = 50
[budgets.short.recipe.supervised]
epochs = 10
[budgets.short.methods.vit.supervised]
lr = 0.5
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of task files that --include would name, with the task `mine`."""
    (tmp_path / "mine.toml").write_text(TASK)
    return tmp_path


def request(folder: Path | None = None, **values: Any) -> Request:
    given = {"name": "s", "tasks": ("demo",), "size": "nano", "arms": (Arm(method="vit"),), **values}
    overrides = given.pop("overrides", UserOverrides())
    extra = {name: given.pop(name) for name in ("limit", "roots", "unlabelled") if name in given}
    return Request(Study(**given), places([folder] if folder else []), overrides, **extra)


def arms(*names: str) -> tuple[Arm, ...]:
    return tuple(Arm(method=name) for name in names)


def only(plan: Plan, kind: str, method: str = "") -> Stage:
    stages = [stage for stage in plan.stages.values() if stage.kind == kind and method in ("", stage.method)]
    assert len(stages) == 1
    return stages[0]


def supervised(folder: Path, overrides: UserOverrides = UserOverrides(), **values: Any) -> Stage:  # noqa: B008
    return only(make_plan(request(folder, tasks=("mine",), overrides=overrides, **values)), "supervised")


def recipe(stage: Stage) -> Any:
    assert stage.recipe is not None
    return stage.recipe


def test_each_layer_wins_over_those_before_it(folder: Path) -> None:
    published = methods.read("vit").recipe["supervised"]
    plain = supervised(folder)
    assert recipe(plain).clip_grad == published["clip_grad"]
    assert recipe(plain).epochs == 20
    assert recipe(supervised(folder, budget="short")).epochs == 10
    assert recipe(supervised(folder, budget="short")).lr == 0.5
    study = {"budget": "short", "recipe": {"supervised": {"epochs": 9}}}
    assert recipe(supervised(folder, **study)).epochs == 9
    environment = UserOverrides(environment={"supervised.epochs": 8})
    assert recipe(supervised(folder, environment, **study)).epochs == 8
    arm = (Arm(method="vit", set={"supervised.epochs": 7}),)
    assert recipe(supervised(folder, environment, arms=arm, **study)).epochs == 7
    last = environment._replace(sets={"supervised.epochs": 6})
    assert recipe(supervised(folder, last, arms=arm, **study)).epochs == 6


def test_every_value_remembers_where_it_is_from(folder: Path) -> None:
    overrides = UserOverrides(environment={"supervised.lr": 0.1}, sets={"vit.supervised.weight_decay": 0.2})
    stage = supervised(folder, overrides)
    assert "P-ViT" in stage.origins["recipe.clip_grad"]
    assert stage.origins["recipe.epochs"] == "task mine"
    assert stage.origins["recipe.lr"] == "environment"
    assert stage.origins["recipe.weight_decay"] == "--set"
    assert stage.departures["recipe.epochs"] == (300.0, 20.0)
    assert "recipe.clip_grad" not in stage.departures


def test_a_value_is_explained_from_first_to_last(folder: Path) -> None:
    overrides = UserOverrides(sets={"supervised.epochs": 6})
    planned = plan_with_history(request(folder, tasks=("mine",), budget="short", overrides=overrides))
    ((kind, method, written),) = explain(planned, "supervised.epochs")
    assert (kind, method) == ("supervised", "vit")
    assert [(w.value, w.published) for w in written] == [(300, True), (20, False), (10, False), (6, False)]
    assert written[2].origin == "budget short of task mine"
    ((_, _, untouched),) = explain(planned, "supervised.momentum")
    assert [(w.value, w.origin) for w in untouched] == [(0.9, "default")]
    with pytest.raises(BenchError, match=r"no stage of this plan has 'pretrain.lr'"):
        explain(planned, "pretrain.lr")


def test_a_variant_changes_what_its_paper_says() -> None:
    plan = make_plan(request(arms=arms("beit", "beit:random-masking")))
    (plain, varied) = [stage for stage in plan.stages.values() if stage.kind == "pretrain"]
    assert plain.options | {"masking": "random"} == varied.options
    assert varied.variant == "random-masking"
    assert [arm.fidelity for arm in plan.arms] == ["close", "variant"]


def test_a_variant_without_a_tokenizer_has_no_such_stage() -> None:
    plan = make_plan(request(arms=arms("beit:pixels")))
    assert {stage.kind for stage in plan.stages.values()} == {"pretrain", "finetune", "evaluate"}


def test_every_method_can_be_probed_on_the_same_pretraining() -> None:
    plan = make_plan(request(arms=arms("beit", "beit:probe", "vit:probe")))
    probes = [stage for stage in plan.stages.values() if stage.kind == "probe"]
    assert probes[0].parents == {"start": only(plan, "pretrain").key}
    assert probes[1].parents == {"start": only(plan, "supervised").key}
    assert [list(stages) for arm in plan.arms for stages in arm.stages.values()] == [
        ["tokenizer", "pretrain", "finetune", "evaluate"],
        ["tokenizer", "pretrain", "probe", "evaluate"],
        ["supervised", "probe", "evaluate"],
    ]


def test_the_same_work_is_planned_once_for_all_arms_and_seeds() -> None:
    both = Study(
        name="s", tasks=("demo", "demo-seg"), size="nano", seeds=(0, 1), arms=arms("beit", "beit:random-masking")
    )
    plan = make_plan(Request(both, places()))
    counts: dict[str, int] = {}
    for stage in plan.stages.values():
        counts[stage.kind] = counts.get(stage.kind, 0) + 1
    assert counts == {"tokenizer": 1, "pretrain": 4, "finetune": 8, "evaluate": 8}


def test_a_teacher_is_the_same_beside_every_size() -> None:
    (small,) = [s.key for s in make_plan(request(arms=arms("deit"))).stages.values() if s.kind == "teacher"]
    (large,) = [
        s.key for s in make_plan(request(arms=arms("deit"), size="tiny")).stages.values() if s.kind == "teacher"
    ]
    assert small == large


def test_segmentation_starts_from_what_was_learned_on_the_task_it_names() -> None:
    plan = make_plan(request(tasks=("demo", "demo-seg")))
    first = next(stage for stage in plan.stages.values() if stage.kind == "supervised")
    finetune = only(plan, "finetune")
    assert finetune.parents == {"start": first.key}
    assert (finetune.task, finetune.model.decoder, finetune.model.classes) == ("demo-seg", "linear", 11)
    assert (first.task, first.model.decoder, first.model.classes) == ("demo", "", 10)
    assert [arm.metric for arm in plan.arms] == ["top1", "mIoU"]


def test_stages_stand_after_their_parents_and_evaluations_see_only_val() -> None:
    plan = make_plan(Request(read_study("demo", places()), places()))
    seen: set[str] = set()
    for key, stage in plan.stages.items():
        assert set(stage.parents.values()) <= seen
        assert key == stage.key
        seen.add(key)
        if stage.kind == "evaluate":
            assert list(stage.data) == ["val"]
            assert stage.recipe is None


def test_the_stages_of_two_seeds_differ_where_they_learn() -> None:
    plan = make_plan(request(seeds=(0, 1), arms=arms("data2vec")))
    first, second = plan.arms[0].stages.values()
    assert all(first[role] != second[role] for role in ("pretrain", "finetune", "evaluate"))


def test_a_plan_is_the_same_each_time_and_comes_back_from_its_json() -> None:
    asked = Request(read_study("demo", places()), places())
    plan = make_plan(asked)
    assert make_plan(asked).stages.keys() == plan.stages.keys()
    again = Plan.model_validate_json(plan.model_dump_json())
    assert again == plan
    assert [stage.key for stage in again.stages.values()] == list(plan.stages)


def test_a_limit_marks_the_result_and_changes_its_key() -> None:
    whole, part = make_plan(request()), make_plan(request(limit=0.5))
    assert not whole.stages.keys() & part.stages.keys()
    assert only(part, "evaluate").data["val"].limit == 0.5
    assert only(part, "supervised").data["train"].images == 250


def test_evaluating_more_often_is_the_same_stage(folder: Path) -> None:
    often = supervised(folder, UserOverrides(sets={"supervised.eval_every_epochs": 3}))
    assert often.key == supervised(folder).key
    assert often.departures == supervised(folder).departures


def test_steps_leave_out_an_incomplete_batch(folder: Path) -> None:
    stage = supervised(folder, UserOverrides(sets={"supervised.batch_size": 60, "supervised.epochs": 2.5}))
    assert steps_of(stage) == 20  # 500 // 60 = 8 steps in an epoch


def test_a_recipe_may_count_in_steps_and_whoever_counts_in_epochs_later_means_epochs(folder: Path) -> None:
    stage = supervised(folder, UserOverrides(sets={"supervised.steps": 35}))
    assert (steps_of(stage), recipe(stage).epochs) == (35, 3.5)  # of 10 steps each
    by_file = (folder / "mine.toml").read_text().replace("epochs = 20", "steps = 35")
    (folder / "mine.toml").write_text(by_file)
    assert steps_of(supervised(folder)) == 35
    assert steps_of(supervised(folder, budget="short")) == 100
    assert steps_of(supervised(folder, UserOverrides(sets={"supervised.epochs": 2}))) == 20


def test_a_task_whose_recipes_are_the_papers_departs_from_nothing(folder: Path) -> None:
    assert "recipe.batch_size" in supervised(folder).departures
    text = (folder / "mine.toml").read_text()
    (folder / "mine.toml").write_text(f'source = "P-X Table 3"\n{text}')
    stage = supervised(folder, budget="short")
    assert {key for key in stage.departures if key.startswith("recipe.")} >= {"recipe.epochs", "recipe.lr"}
    assert "recipe.batch_size" not in stage.departures
    assert stage.origins["recipe.batch_size"] == "P-X Table 3"


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"supervised.lrr": 1}, r"unknown key 'supervised.lrr'. Did you mean lr\?"),
        ({"supervized.lr": 1}, r"no stage 'supervized'.*Did you mean supervised\?"),
        ({"vitt.supervised.lr": 1}, r"no method 'vitt'.*Did you mean vit\?"),
        ({"model.widht": 1}, r"Did you mean width\?"),
        ({"pretrain.lr": 1}, r"'pretrain.lr' was set, but no stage has this value"),
        ({"supervised.options.nothing": 1}, r"'supervised.options.nothing' was set, but no stage has this value"),
        ({"vit.supervised.options.head_bais": 1}, r"Did you mean head_bias\?"),
        ({"supervised.options.head_bias": "low"}, r"options.head_bias = 'low': should be of type float, like 0.0"),
        ({"supervised.epochs": -1}, r"vit, supervised: epochs = -1: input should be greater than 0"),
        ({"supervised.lr": "fast"}, r"lr = 'fast'"),
        ({"supervised.batch_size": 501}, r"batch_size 501 is more than the 500 images of demo/train"),
        ({"supervised.warmup_epochs": 30}, r"warmup_epochs 30 is not less than epochs 20"),
        ({"supervised.warmup_steps": 10**6}, r"warmup_steps 1000000 is not less than the 200 steps"),
        ({"supervised.freeze": True}, r"freeze = true would leave nothing to learn"),
        ({"model.patch_size": 7}, r"image_size 48 is not a multiple of patch_size 7"),
        ({"model.heads": 5}, r"width 96 is not a multiple of heads 5"),
        ({"model.image_size": 64}, r"image_size 64 is not the 48 pixels that task mine scores at"),
        ({"supervised": 1}, r"write stage.key"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_what_would(folder: Path, sets: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        supervised(folder, UserOverrides(sets=sets))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tasks": ("dmo",)}, r"no task 'dmo'.*Did you mean demo\?"),
        ({"arms": arms("bait")}, r"no method 'bait'.*Did you mean beit\?"),
        ({"arms": arms("beit:pixel")}, r"no variant of beit 'pixel'.*Did you mean pixels\?"),
        ({"size": "tyni"}, r"no size 'tyni'.*Did you mean tiny\?"),
        ({"budget": "defualt"}, r"no budget of task demo 'defualt'.*Did you mean default\?"),
        ({"tasks": ()}, r"arm vit has no task"),
        ({"arms": arms("vit", "vit")}, r"two arms are the same: vit/nano/demo/default"),
        ({"recipe": {"supervised": {"lrr": 1}}}, r"study s: unknown key 'supervised.lrr'"),
        ({"methods": {"vit": {"supervised": {"options": {"x": 1}}}}}, r"study s, for vit: vit has no"),
    ],
)
def test_a_study_that_speaks_of_what_is_not_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        make_plan(request(**values))


def test_arms_that_differ_in_their_own_values_are_told_apart() -> None:
    pair = (Arm(method="vit"), Arm(method="vit", label="hot", set={"supervised.lr": 0.1}))
    plan = make_plan(request(arms=pair))
    assert [arm.id for arm in plan.arms] == ["vit/nano/demo/default", "vit/nano/demo/default#2"]
    assert [arm.label for arm in plan.arms] == ["ViT", "hot"]


def test_published_recipes_are_complete_for_every_size_and_variant() -> None:
    for name in methods.names():
        for variant in ["", *variants(methods.read(name))]:
            method = f"{name}:{variant}" if variant else name
            for size in ("base", "large"):
                asked = request(tasks=("imagenet1k",), size=size, arms=arms(method))
                plan = plan_with_history(asked, WITHOUT_DATA).plan
                departing = {stage.kind: stage.departures for stage in plan.stages.values() if stage.departures}
                assert not departing, method


def test_every_task_and_study_that_is_shipped_is_sound() -> None:
    for path in (*task_files(places()).values(), *study_files(places()).values()):
        assert validate(path, [])


def test_a_file_with_a_mistake_is_named(folder: Path) -> None:
    path = folder / "mine.toml"
    path.write_text(TASK.replace("lr = 0.5", "lrr = 0.5"))
    with pytest.raises(BenchError, match=r"task mine, budget short: unknown key 'supervised.lrr'"):
        validate(path, [])
    path.write_text(TASK.replace("epochs = 10", "epochs = -10"))
    with pytest.raises(BenchError, match=r"task mine, budget short, supervised: epochs = -10"):
        validate(path, [])
    path.write_text(TASK.replace("methods.vit", "methods.vitt"))
    with pytest.raises(BenchError, match=r"no method 'vitt'"):
        validate(path, [])
    path.write_text("x = 1")
    with pytest.raises(BenchError, match=r"a study has \[\[arms\]\]"):
        validate(path, [])


def test_tasks_are_found_where_include_and_bench_home_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_task("mine", places([folder])).name == "mine"
    with pytest.raises(BenchError, match=r"no task 'mine'"):
        read_task("mine", places())
    home = folder / "home" / "tasks" / "studies"
    home.mkdir(parents=True)
    (home / "own.toml").write_text('[[arms]]\nmethod = "vit"\n')
    monkeypatch.setenv("BENCH_HOME", str(folder / "home"))
    assert read_study("own", places()).arms[0].method == "vit"
    assert read_study(str(home / "own.toml"), places()).name == "own"
    with pytest.raises(BenchError, match=r"--include .*nowhere: no such folder"):
        places([folder / "nowhere"])


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_an_open_precision_is_decided_by_the_machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, native: bool, precision: str
) -> None:
    monkeypatch.setattr("bench.config.resolve.computes_in_bf16", lambda: native)
    stage = supervised(folder, UserOverrides(sets={"supervised.precision": "auto"}))
    assert stage.recipe is not None
    assert stage.recipe.precision == precision
    assert stage.departures.get("recipe.precision") == (None if native else ("bf16", "fp32"))


def test_values_are_read_as_toml_writes_them() -> None:
    assert parse_set("finetune.lr=2e-3") == ("finetune.lr", 0.002)
    assert parse_set(" a.b = [0.9, 0.95]") == ("a.b", [0.9, 0.95])
    assert (parse_value("true"), parse_value("7"), parse_value("bf16")) == (True, 7, "bf16")
    with pytest.raises(BenchError, match=r"write KEY=VALUE"):
        parse_set("finetune.lr")


def test_addresses_say_what_they_reach() -> None:
    assert (
        str(parse_address("beit:pixels.pretrain.options.masking", ["beit"])) == "beit:pixels.pretrain.options.masking"
    )
    assert parse_address("model.teacher.trunk") == parse_address("teacher.model.trunk")
    assert str(parse_address("model.width")) == "model.width"


def test_the_environment_sets_values_and_its_mistakes_are_named() -> None:
    values = from_environment({"BENCH_FINETUNE_LR": "2e-3", "BENCH_PRETRAIN_OPTIONS_HIDDEN_FRACTION": "0.5",
                               "BENCH_MODEL_LAYER_SCALE": "0.1", "BENCH_DATA_DIR": "/data", "PATH": "x"})  # fmt: skip
    assert values == {"finetune.lr": 0.002, "pretrain.options.hidden_fraction": 0.5, "model.layer_scale": 0.1}
    with pytest.raises(
        BenchError, match=r"BENCH_FINTUNE_LR in the environment is not a setting of bench. Did you mean"
    ):
        from_environment({"BENCH_FINTUNE_LR": "1"})


def test_unlabelled_pictures_are_for_learning_without_labels_only(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("data/train/cat", "data/train/dog", "data/val/cat", "data/val/dog", "loose/deep"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(40):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    asked = request(
        tasks=("folder",), size="nano", arms=arms("data2vec"),
        roots={"": str(tmp_path / "data")}, unlabelled=str(tmp_path / "loose"),
    )  # fmt: skip
    plan = make_plan(asked)
    assert only(plan, "pretrain").data["train"].images == 40
    assert only(plan, "finetune").data["train"].images == 80
    assert only(plan, "finetune").model.classes == 2
    without = make_plan(replace(asked, unlabelled=""))
    assert only(without, "pretrain").data["train"].images == 80
