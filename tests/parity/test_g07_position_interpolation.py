"""Handing weights over to another grid: relative-bias tables and absolute embeddings, as recorded."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from recorded import arrays, near, read

from bench.config.schema import Model
from bench.models.backbone import build
from bench.models.pos_embed import geometric_offsets, resize_embedding, resize_table
from bench.models.transfer import transfer

GOLDEN = "g07_position_interpolation"
BIAS_TABLE = "relative_position_bias_table"
KINDS = {"relative position bias", "absolute position embedding", "segmentation backbone checkpoint"}


class Case(NamedTuple):
    """One hand-over: its facts, and the arrays before and after by their names in the state."""

    facts: dict[str, Any]
    given: dict[str, Any]
    recorded: dict[str, Any]


@pytest.fixture
def path(golden):
    return golden / GOLDEN / "outputs.safetensors"


@pytest.fixture
def cases(golden):
    facts = read(golden / GOLDEN / "config.json")
    before, after = (arrays(golden / GOLDEN / f"{name}.safetensors") for name in ("inputs", "outputs"))
    assert {key.partition("/")[0] for key in before} == {key.partition("/")[0] for key in after} == facts.keys()
    assert {fact["what"] for fact in facts.values()} == KINDS
    return {name: Case(fact, of(before, name), of(after, name)) for name, fact in facts.items()}


def of(every, name):
    return {key.partition("/")[2]: value for key, value in every.items() if key.partition("/")[0] == name}


def test_a_hand_over_to_another_grid_leaves_the_recorded_tables(cases, path):
    """The whole backbone is handed over, as before fine-tuning and segmentation."""
    compared = 0
    for name, (case, given, recorded) in cases.items():
        tables = [key for key in recorded if key.endswith(BIAS_TABLE)]
        if not tables:
            continue
        size = {"width": 4 * case["heads"], "depth": case["depth"], "heads": case["heads"], "patch_size": 2}
        position = "shared-relative" if case["input_is_shared_table"] else "relative"
        old = build(Model(trunk="beit", position=position, image_size=2 * case["source_grid"], **size))
        new = build(Model(trunk="beit", position="relative", image_size=2 * case["target_grid"], **size))
        transfer(old.state_dict() | {key: value for key, value in given.items() if key.endswith(BIAS_TABLE)}, new)
        assert len(tables) == case["depth"]
        for key in tables:
            near(new.state_dict()[key], path, f"{name}/{key}", "resized")
            compared += 1
    assert compared


def test_one_table_resized_is_the_recorded_one(cases, path):
    compared = 0
    for name, (case, given, recorded) in cases.items():
        for key in (key for key in given if key.endswith(BIAS_TABLE)):
            for after in (key,) if key in recorded else (k for k in recorded if k.endswith(BIAS_TABLE)):
                near(resize_table(given[key], case["target_grid"]), path, f"{name}/{after}", "resized")
                compared += 1
    assert compared


def test_old_offsets_stand_where_the_authors_put_them(cases):
    noted = [case.facts for case in cases.values() if case.facts.get("source_positions")]
    assert noted
    for case in noted:
        offsets = geometric_offsets(case["source_grid"], case["target_grid"])
        np.testing.assert_allclose(offsets, case["source_positions"], rtol=1e-9)
        middle = len(offsets) // 2
        if len(offsets) > 3:
            assert offsets[middle + 2] - offsets[middle + 1] == pytest.approx(case["q"], rel=1e-9)
        assert case["target_positions"] == [1 - case["target_grid"], case["target_grid"] - 1]


def test_absolute_embeddings_are_resized_as_recorded(cases, path):
    compared = 0
    for name, (case, given, recorded) in cases.items():
        if "pos_embed" in recorded:
            prefix = given["pos_embed"].shape[1] - case["source_grid"] ** 2
            assert prefix == case.get("extra_tokens", 1)
            resized = resize_embedding(given["pos_embed"], case["target_grid"], prefix_tokens=prefix)
            near(resized, path, f"{name}/pos_embed", "resized")
            compared += 1
    assert compared


def test_every_recorded_array_is_a_table_or_an_embedding(cases):
    assert all(key == "pos_embed" or key.endswith(BIAS_TABLE) for case in cases.values() for key in case.recorded)
