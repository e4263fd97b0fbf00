"""How near is equal: no wider than the noise allows."""

import pytest
import torch
from recorded import LIMITS, Limit, near, noise
from safetensors.torch import save_file


@pytest.mark.parametrize("kind", LIMITS)
def test_a_limit_is_ten_times_the_noise_of_its_kind_or_says_why(kind):
    limit = LIMITS[kind]
    assert limit.value <= 10 * limit.noise or limit.why


@pytest.fixture
def file(tmp_path):
    save_file({"value": torch.zeros(3), "none": torch.zeros(0)}, tmp_path / "outputs.safetensors")
    return tmp_path / "outputs.safetensors"


def test_a_difference_beyond_the_limit_fails(tmp_path):
    path = tmp_path / "outputs.safetensors"
    save_file({"value": torch.zeros(3)}, path)
    limit: Limit = LIMITS["outputs"]
    near(torch.full((3,), 0.9 * limit.value), path, "value", "outputs")
    with pytest.raises(AssertionError, match="differs by"):
        near(torch.full((3,), 1.1 * limit.value), path, "value", "outputs")


def test_ten_times_the_noise_that_a_folder_notes_is_allowed(tmp_path):
    path = tmp_path / "case" / "outputs.safetensors"
    path.parent.mkdir()
    save_file({"value": torch.zeros(3)}, path)
    note = '{"case/outputs": {"value": {"two_threads": 1e-5, "float64": 3e-5}}}'
    (tmp_path / "noise.json").write_text(note)
    assert noise(path, "value") == 3e-5
    near(torch.full((3,), 2.9e-4), path, "value", "outputs")
    with pytest.raises(AssertionError, match="differs by"):
        near(torch.full((3,), 3.1e-4), path, "value", "outputs")


@pytest.mark.parametrize("wrong", [torch.zeros(2), torch.full((3,), torch.nan)])
def test_another_shape_and_what_is_no_number_fail(tmp_path, wrong):
    path = tmp_path / "outputs.safetensors"
    save_file({"value": torch.zeros(3)}, path)
    with pytest.raises(AssertionError):
        near(wrong, path, "value", "outputs")


def test_a_file_with_an_empty_array_compares_nothing_and_fails(file):
    with pytest.raises(AssertionError, match="none is empty"):
        near(torch.zeros(3), file, "value", "outputs")
