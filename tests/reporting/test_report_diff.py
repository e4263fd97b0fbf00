"""Two reports of the same arms: what became better or worse, and what cannot be told."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.errors import BenchError
from bench.reporting.report_diff import changes, read, rows


def arm(score: float, *, label: str = "ViT", sd: float = 0.2, seeds: int = 5, half: float = 0.3, hours: float = 1.0):
    return {
        "task": "t", "arm": label.lower(), "label": label, "score": score, "sd": sd, "seeds": seeds,
        "low": score - half, "high": score + half, "device_hours_all": hours,
    }  # fmt: skip


def report(*arms, **protocol):
    prints = [{"task": a["task"], "arm": a["arm"], "label": a["label"], "fingerprint": "x", **protocol} for a in arms]
    return {"format": 2, "arms": list(arms), "fingerprints": prints}


def only(before, after):
    (change,) = changes(before, after)
    return change


def test_a_gain_beyond_seeds_and_images_is_better_and_a_loss_worse() -> None:
    assert only(report(arm(80.0)), report(arm(82.0))).verdict == "better"
    assert only(report(arm(82.0)), report(arm(80.0))).verdict == "worse"


def test_a_difference_within_the_noise_has_no_direction() -> None:
    change = only(report(arm(80.0)), report(arm(80.3)))
    assert change.verdict == "not distinguishable"
    assert change.low < 0 < change.high


def test_arms_trained_once_speak_of_images_alone() -> None:
    change = only(report(arm(80.0, seeds=1, sd=None)), report(arm(81.0, seeds=1, sd=None)))
    assert change.why == "trained once: other images alone"
    assert change.high - change.low == pytest.approx(2 * 0.3 * 2**0.5)


def test_another_protocol_is_not_compared() -> None:
    change = only(report(arm(80.0), resolution="224"), report(arm(85.0), resolution="384"))
    assert (change.verdict, change.why) == ("not comparable", "resolution 224 vs 384")
    assert rows([change])[0]["difference"] == ""


def test_arms_of_one_report_only_are_named() -> None:
    arms = changes(report(arm(80.0), arm(70.0, label="old")), report(arm(60.0, label="new"), arm(80.0)))
    assert {(change.label, change.verdict) for change in arms} == {
        ("ViT", "not distinguishable"), ("old", "only before"), ("new", "only after")
    }  # fmt: skip


def test_an_arm_that_goes_by_another_id_is_found_by_its_label() -> None:
    other = {**arm(82.0), "arm": "vit/base/t/new-budget"}
    assert only(report(arm(80.0)), report(other)).verdict == "better"


def test_a_true_null_is_rarely_called_different() -> None:
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        scores = 80 + 0.4 * generator.standard_normal((2, 5)) + 0.2 * generator.standard_normal((2, 1))
        sides = [report(arm(float(s.mean()), sd=float(s.std(ddof=1)), half=1.96 * 0.2)) for s in scores]
        wrong += only(*sides).verdict != "not distinguishable"
    assert wrong / 400 < 0.08  # 5 % with three standard errors


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[]", "is not a report.json"), ('{"format": 1, "arms": []}', "format 1")],
)
def test_another_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(BenchError, match=message):
        read(tmp_path / "report.json")
    with pytest.raises(BenchError, match="No such file"):
        read(tmp_path / "missing.json")


def test_a_report_is_read(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report(arm(80.0))))
    assert read(tmp_path / "report.json")["arms"][0]["score"] == 80.0
