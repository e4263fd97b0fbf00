"""A checkpoint is whole or not there, and a damaged one is noticed."""

import logging
import resource
import signal
from pathlib import Path

import pytest
import torch

from bench.checkpoints.weights import load_weights, save_weights
from bench.errors import BenchError
from bench.training.checkpoint import Checkpoint, newest, save


def optimizer_state(steps: int) -> dict:
    weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    optimizer = torch.optim.AdamW([{"params": [weight], "name": "decay", "lr_scale": 0.5}], lr=1e-3)
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    return optimizer.state_dict()


def checkpoint(step: int) -> Checkpoint:
    weights = {"model": {"w": torch.full((2, 3), float(step))}, "ema": {"w": torch.zeros(2, 3)}}
    return Checkpoint(step, weights, optimizer_state(step), {"seconds": 1.5 * step, "best": None})


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def test_what_is_saved_comes_back(tmp_path):
    saved = checkpoint(3)
    save(tmp_path, saved)
    latest = newest(tmp_path)
    assert latest.step == 3
    assert latest.facts == saved.facts
    assert latest.weights.keys() == saved.weights.keys()
    assert torch.equal(latest.weights["model"]["w"], saved.weights["model"]["w"])
    assert latest.optimizer["param_groups"] == saved.optimizer["param_groups"]
    assert torch.equal(latest.optimizer["state"][0]["exp_avg"], saved.optimizer["state"][0]["exp_avg"])


def test_there_is_nothing_before_the_first(tmp_path):
    assert newest(tmp_path / "checkpoints") is None


def test_the_last_two_are_kept(tmp_path):
    for step in (1, 2, 10, 300):
        save(tmp_path, checkpoint(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000300"]
    assert newest(tmp_path).step == 300


FILES = ["model.safetensors", "ema.safetensors", "optimizer.pt", "facts.json", "manifest.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [flip_a_byte, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:20])])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, caplog, file, damage):
    save(tmp_path, checkpoint(1))
    save(tmp_path, checkpoint(2))
    damage(tmp_path / "step-00000002" / file)
    with caplog.at_level(logging.WARNING):
        latest = newest(tmp_path)
    assert latest.step == 1
    assert "step-00000002 is damaged" in caplog.text
    assert file in caplog.text or "step-00000002" in caplog.text


def test_nothing_but_damage_is_an_error(tmp_path):
    save(tmp_path, checkpoint(1))
    flip_a_byte(tmp_path / "step-00000001" / "model.safetensors")
    with pytest.raises(BenchError, match=r"every checkpoint .* is damaged; delete"):
        newest(tmp_path)


def test_an_unfinished_one_is_not_seen(tmp_path):
    save(tmp_path, checkpoint(1))
    (tmp_path / ".step-00000002.tmp").mkdir()
    (tmp_path / ".step-00000002.tmp" / "model.safetensors").write_bytes(b"half")
    assert newest(tmp_path).step == 1
    save(tmp_path, checkpoint(2))
    assert newest(tmp_path).step == 2


def test_a_step_saved_twice_holds_the_second(tmp_path):
    save(tmp_path, checkpoint(2))
    save(tmp_path, checkpoint(2)._replace(facts={"seconds": 9.0}))
    assert newest(tmp_path).facts == {"seconds": 9.0}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match=r"cannot write .*step-00000001"):
        save(tmp_path / "file", checkpoint(1))


def test_weights_that_share_memory_are_stored(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    save_weights(tmp_path / "final" / "model.safetensors", {"a": whole, "b": whole[1:], "c": whole.t()})
    weights = load_weights(tmp_path / "final" / "model.safetensors")
    assert torch.equal(weights["b"], whole[1:])
    assert torch.equal(weights["c"], whole.t())


def test_damaged_weights_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(BenchError, match="no such file"):
        load_weights(path)
    path.write_bytes(b"not weights")
    with pytest.raises(BenchError, match=r"model\.safetensors is damaged"):
        load_weights(path)


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(tmp_path):
    save(tmp_path, checkpoint(1))
    large = checkpoint(2)._replace(optimizer={"state": {0: torch.zeros(100_000)}})
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # a file cannot grow any more, as on a full disk
    try:
        with pytest.raises(BenchError, match=r"cannot write .*step-00000002: File too large; make room"):
            save(tmp_path, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert newest(tmp_path).step == 1
