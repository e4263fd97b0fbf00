"""The order of repeated augmentation equals that of DeiT's sampler, whatever the number of devices (golden g10)."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bench.sampler import repeated, shuffled


@pytest.fixture(scope="module")
def folder(golden: Path) -> Path:
    return golden / "g10_sampling_and_mixing"


def test_every_device_gets_the_images_of_the_published_sampler(folder):
    facts = json.loads((folder / "repeated_augmentation.json").read_text())
    expected = load_file(folder / "repeated_augmentation.safetensors")
    compared = 0
    for case, fact in facts.items():
        for name in (name for name in expected if name.startswith(f"{case}_ws") and "unshuffled" not in name):
            processes, epoch = (int(part[2:]) for part in name.removeprefix(f"{case}_").split("_"))
            shown = repeated(shuffled(epoch, fact["dataset_size"]), fact["num_repeats"])
            for rank, row in enumerate(expected[name].tolist()):
                assert shown[rank::processes][: len(row)].tolist() == row, (name, rank)
                compared += 1
    assert compared > 0
