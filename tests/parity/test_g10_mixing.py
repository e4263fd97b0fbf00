"""Mixup and CutMix give the images and targets of timm as DeiT used it, or of a current timm (golden g10)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.seeds import forked
from bench.spec import Recipe
from bench.transforms import Mixer

FOLDER = "g10_sampling_and_mixing"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--golden") / FOLDER
    found = {name for notes in folder.glob("mixing_timm_*.json") for name in json.loads(notes.read_text())["cases"]}
    metafunc.parametrize("setting", sorted(found))


def test_mixing_equals_a_published_version_of_timm(golden: Path, setting: str):
    inputs = load_file(golden / FOLDER / "mixing_inputs.safetensors")
    matches = {}
    for version, facts, expected in recorded(golden / FOLDER, setting):
        pairs = zip(mixed(facts, inputs), expected, strict=True)
        matches[version] = all(close(ours, theirs) for ours, theirs in pairs)
    assert any(matches.values()), matches


def recorded(folder: Path, setting: str) -> Iterator[tuple[str, dict[str, Any], list[tuple[Tensor, Tensor]]]]:
    """For each version of timm: the options of the setting, and images and targets of each call."""
    for path in sorted(folder.glob("mixing_timm_*.json")):
        notes = json.loads(path.read_text())
        arrays = load_file(folder / f"mixing_outputs_{path.stem.removeprefix('mixing_')}.safetensors")
        calls = zip(arrays[f"{setting}.images"], arrays[f"{setting}.targets"], strict=True)
        yield notes["timm"], notes | notes["cases"][setting], list(calls)


def mixed(facts: dict[str, Any], inputs: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """What we make of the recorded images, the generator being seeded once."""
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


def close(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
