"""What a person writes is checked, and named when it is wrong."""

import copy
import pickle
from pathlib import Path

import pytest

from bench.config.registry import read_task_file
from bench.config.schema import Model, Protocol, Recipe, Study, Task
from bench.config.stage import Data, Stage, digest
from bench.errors import BenchError, nearest, parse, read_toml, unknown


def stage(**changes: object) -> Stage:
    values = {
        "kind": "supervised",
        "method": "vit",
        "task": "demo",
        "model": Model(),
        "recipe": Recipe(),
        "protocol": Protocol(),
        "data": {"train": Data(dataset="demo", split="train", identity="abc", images=500)},
    }
    return Stage.model_validate({**values, **changes})


def test_an_unknown_key_is_answered_with_the_nearest() -> None:
    with pytest.raises(BenchError, match=r"here: unknown key 'epoch'. Did you mean epochs\?"):
        parse(Recipe, {"epoch": 3}, "here")


def test_an_unknown_key_inside_a_table_is_answered_with_the_nearest_of_that_table() -> None:
    with pytest.raises(BenchError, match=r"unknown key 'protocol.resolutoin'. Did you mean resolution\?"):
        parse(Task, {"dataset": "demo", "splits": {}, "protocol": {"resolutoin": 3}}, "here")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": -3}, "epochs = -3: input should be greater than 0"),
        ({"epochs": 0}, "epochs = 0"),
        ({"lr": "fast"}, "lr = 'fast': input should be a valid number"),
        ({"batch_size": 0.5}, "batch_size = 0.5"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"flip": 1.5}, "flip = 1.5: input should be less than or equal to 1"),
        ({"lr": float("nan")}, "lr = nan: input should be a finite number"),
        ({"optimizer": "adam"}, "optimizer = 'adam': input should be 'adamw' or 'sgd'"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(values: dict[str, object], message: str) -> None:
    with pytest.raises(BenchError, match=message.replace("(", r"\(")):
        parse(Recipe, values, "here")


def test_a_protocol_that_contradicts_itself_or_its_task_is_refused() -> None:
    with pytest.raises(BenchError, match="here: whole = true shows an image once"):
        parse(Protocol, {"whole": True, "stride": 341}, "here")
    labels = {"dataset": "demo", "splits": {}, "protocol": {"flip": True}}
    with pytest.raises(BenchError, match=r"here: protocol\.stride, scales and flip are for segmentation"):
        parse(Task, labels, "here")
    assert parse(Task, {**labels, "kind": "segmentation"}, "here").protocol.flip


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(BenchError, match=r"epochs = -1.*lr = 0"):
        parse(Recipe, {"epochs": -1, "lr": 0}, "here")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(BenchError, match="'arms' is missing"):
        parse(Study, {}, "here")


def test_a_toml_file_with_a_mistake_is_named_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('name = "x"\nseeds = 0 1\n')
    with pytest.raises(BenchError, match=r"study.toml: .*line 2"):
        read_toml(path)
    with pytest.raises(BenchError, match=r"none.toml: no such file"):
        read_toml(tmp_path / "none.toml")


def test_an_unknown_name_is_answered_with_all_and_the_nearest() -> None:
    text = str(unknown("task", "ade", ["demo", "ade20k"]))
    assert text == "no task 'ade'; available: ade20k, demo. Did you mean ade20k?"
    assert nearest("xyz", ["demo"]) == ""


def test_the_same_stage_has_the_same_key_and_another_has_another() -> None:
    assert stage().key == stage().key
    assert stage(seed=1).key != stage().key
    assert stage(recipe=Recipe(lr=2e-3)).key != stage().key
    assert stage(protocol=Protocol(resolution=384)).key != stage().key
    assert stage(parents={"start": "x"}).key != stage().key
    assert stage(version=2).key != stage().key
    assert stage().folder == f"supervised-{stage().key[:12]}"


def test_a_key_is_hashed_once_and_a_copy_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    monkeypatch.setattr("bench.config.stage.digest", lambda value: hashed.append(value) or digest(value))
    first = stage()
    assert first.key == first.key
    assert len(hashed) == 1
    for deep in (False, True):
        other = first.model_copy(update={"seed": 1}, deep=deep)
        assert other.key == stage(seed=1).key != first.key
        assert other.model_copy(update={"seed": 0}, deep=deep).key == first.key


def test_a_key_that_was_asked_for_leaves_no_trace_in_the_stage() -> None:
    keyed, fresh = stage(), stage()
    assert keyed.key
    assert keyed == fresh
    assert repr(keyed) == repr(fresh)
    assert keyed.model_dump() == fresh.model_dump()
    assert keyed.model_dump_json() == fresh.model_dump_json()
    for again in (copy.copy(keyed), copy.deepcopy(keyed), pickle.loads(pickle.dumps(keyed))):
        assert again == fresh
        assert again.key == keyed.key


def test_what_does_not_change_a_result_does_not_change_its_key() -> None:
    moved = {"train": Data(dataset="demo", split="train", identity="abc", images=500, root="/elsewhere")}
    assert stage(data=moved).key == stage().key
    assert stage(recipe=Recipe(eval_every_epochs=7, checkpoint_every_epochs=3)).key == stage().key
    assert stage(origins={"recipe.lr": "a paper"}, departures={"recipe.lr": (1, 2)}).key == stage().key
    assert stage(variant="strong", task="other").key == stage().key


def test_a_limited_split_has_a_key_of_its_own() -> None:
    limited = {"train": Data(dataset="demo", split="train", identity="abc", images=500, limit=0.5)}
    assert stage(data=limited).key != stage().key


def test_a_hash_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [1.5, "x"]}) == digest({"b": [1.5, "x"], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_a_stage_comes_back_from_its_json() -> None:
    there = stage(departures={"recipe.betas": ([0.9, 0.95], [0.9, 0.999])})
    assert Stage.model_validate_json(there.model_dump_json()) == there


def test_a_task_may_be_another_one_with_changes(tmp_path: Path) -> None:
    (tmp_path / "first.toml").write_text(TASK_WITH_TABLES)
    (tmp_path / "second.toml").write_text('base = "first"\nimage_size = 64\n[protocol]\nresolution = 64\n')
    first, second = read_task_file(tmp_path / "first.toml"), read_task_file(tmp_path / "second.toml")
    assert (second.image_size, second.protocol.resolution, second.protocol.crop_ratio) == (64, 64, 0.5)
    assert second.splits == first.splits
    assert (first.image_size, first.name, second.name) == (48, "first", "second")


@pytest.mark.parametrize("base", ["second", "nowhere"])
def test_a_base_that_is_not_there_or_is_itself_is_refused(tmp_path: Path, base: str) -> None:
    (tmp_path / "first.toml").write_text(TASK_WITH_TABLES)
    (tmp_path / "second.toml").write_text(f'base = "{base}"\n')
    with pytest.raises(BenchError, match=f"base = '{base}': no other task '{base}'; available: first"):
        read_task_file(tmp_path / "second.toml")


TASK_WITH_TABLES = """
dataset = "demo"
image_size = 48
splits = { train = "train", val = "val" }
[protocol]
resolution = 48
crop_ratio = 0.5
"""
