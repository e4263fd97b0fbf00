"""Mixup and CutMix give the images and targets of timm as DeiT used it, or of a current timm."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded import LIMITS, arrays, read
from torch import Tensor

from bench.config.schema import Recipe
from bench.pipeline.mixup import Mixer
from bench.seeding import forked

GOLDEN = "g10_sampling_and_mixing"
Call = tuple[Tensor, Tensor]  # images and targets


def versions(folder: Path) -> dict[Path, Path]:
    """The notes of each version of timm, and its arrays."""
    notes = sorted(folder.glob("mixing_timm_*.json"))
    return {
        path: path.with_name(path.name.replace("mixing_", "mixing_outputs_")).with_suffix(".safetensors")
        for path in notes
    }


def settings(folder: Path) -> list[str]:
    names = {name for notes in versions(folder) for name in read(notes)["cases"]}
    if not names:
        pytest.fail(f"{folder} has no setting of mixing", pytrace=False)
    return sorted(names)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "setting" in metafunc.fixturenames:
        metafunc.parametrize("setting", settings(metafunc.config.getoption("--golden") / GOLDEN))


def test_mixing_equals_a_published_version_of_timm(golden: Path, setting: str):
    inputs = arrays(golden / GOLDEN / "mixing_inputs.safetensors")
    worst = {}
    for version, facts, expected in recorded(golden / GOLDEN, setting):
        calls = mixed(facts, inputs)
        assert len(calls) == len(expected) > 0
        worst[version] = max(distance(ours, theirs) for ours, theirs in zip(calls, expected, strict=True))
    assert min(worst.values()) <= LIMITS["mixed"].value, worst


def test_every_recorded_array_belongs_to_a_setting(golden: Path):
    for notes, file in versions(golden / GOLDEN).items():
        names = {f"{case}.{part}" for case in read(notes)["cases"] for part in ("images", "targets")}
        assert arrays(file).keys() == names


def recorded(folder: Path, setting: str) -> Iterator[tuple[str, dict[str, Any], list[Call]]]:
    """For each version of timm: the options of the setting, and images and targets of each call."""
    for path, file in versions(folder).items():
        notes, tensors = read(path), arrays(file)
        calls = zip(tensors[f"{setting}.images"], tensors[f"{setting}.targets"], strict=True)
        yield notes["timm"], notes | notes["cases"][setting], list(calls)


def mixed(facts: dict[str, Any], inputs: dict[str, Tensor]) -> list[Call]:
    """What we make of the recorded images, the generator being seeded once."""
    assert facts["mode"] == "batch"
    recipe = Recipe(
        mixup=facts["mixup_alpha"],
        cutmix=facts["cutmix_alpha"],
        mix_prob=facts["prob"],
        mix_switch_prob=facts["switch_prob"],
        label_smoothing=facts["label_smoothing"],
    )
    span = facts.get("cutmix_minmax")
    mixer = Mixer(recipe, facts["num_classes"], cutmix_minmax=tuple(span) if span else None)
    with forked(0):
        np.random.seed(facts["numpy_seed"])
        return [mixer.mix(inputs["images"].clone(), inputs["labels"]) for _ in range(facts["calls_per_case"])]


def distance(ours: Call, theirs: Call) -> float:
    """The largest difference of pixels and targets; infinite for another shape."""
    if any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        return float("inf")
    return max(float(torch.sub(a, b).abs().max()) for a, b in zip(ours, theirs, strict=True))
