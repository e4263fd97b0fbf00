"""What a person selects becomes a request: seeds that are added, folders of data, contradictions that are refused."""

from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError
from bench.planning.planner import make_plan
from bench.planning.selection import CheckpointSelection, StudySelection, checkpoint_request, parse_data_dirs
from bench.planning.selection import study_request as request
from bench.runs.store import save_plan

VIT = {"methods": ("vit",), "tasks": ("demo",), "size": "nano"}


@pytest.fixture(autouse=True)
def no_settings_of_the_developers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_DATA_DIR", raising=False)


def test_seeds_are_added_to_those_of_the_last_run(tmp_path: Path) -> None:
    def seeds(**changes: Any) -> tuple[int, ...]:
        return request(StudySelection(**{**VIT, **changes}), tmp_path).study.seeds

    assert seeds() == (0,)
    assert seeds(add_seeds=2) == (0, 1, 2)
    save_plan(tmp_path, make_plan(request(StudySelection(**VIT, add_seeds=2), tmp_path)))
    assert seeds(add_seeds=1) == (0, 1, 2, 3)
    assert seeds(add_seeds=1, size="tiny") == (0, 1)  # another study


def test_a_folder_may_hold_an_equals_sign() -> None:
    assert parse_data_dirs(["/data/a=b"]) == {"": "/data/a=b"}
    assert parse_data_dirs(["demo=/data/a=b", "hf:owner/name"]) == {"demo": "/data/a=b", "": "hf:owner/name"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"study": "demo"}, "not both"),
        ({"tasks": ()}, "--method needs --task"),
        ({"methods": (), "tasks": ()}, "nothing to compare"),
        ({"scale": "tiny"}, "--scale tiny"),
        ({"precision": "fp8"}, "--mixed-precision fp8"),
        ({"unlabelled": "/nowhere"}, "--unlabelled /nowhere: no such folder"),
        ({"data_dirs": {"dmeo": "x"}}, "--data-dir dmeo=x: no task 'dmeo'"),
    ],
)
def test_a_selection_that_contradicts_itself_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        request(StudySelection(**{**VIT, **changes}), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"), [({"protocol": "crad"}, "Did you mean card"), ({"precision": "auto"}, "write no, bf16")]
)
def test_an_evaluation_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        checkpoint_request(CheckpointSelection(checkpoints=("x",), task="demo", **changes), tmp_path)
