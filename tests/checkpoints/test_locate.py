"""Weights from outside: found by what a person types, known by what they hold, and missed with advice."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors.torch import save_file

from bench.checkpoints import locate as module
from bench.checkpoints.locate import IMPORTED, OURS, locate
from bench.errors import BenchError
from bench.files import write_json

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch) -> None:
    """No cache of the user's, and no network."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def weights(path: Path, value: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"x": torch.full((3,), value)}, path)
    return path


def cached(root: Path, repository: str, names=("model.safetensors", "config.json")) -> Path:
    """A model in the hub's cache, as huggingface_hub lays it out."""
    folder = root / "hub" / f"models--{repository.replace('/', '--')}"
    for name in names:
        path = folder / "snapshots" / COMMIT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".json"):
            write_json(path, {})
        else:
            weights(path)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return folder / "snapshots" / COMMIT


def test_a_file_is_known_by_the_hash_of_its_content(tmp_path):
    path = weights(tmp_path / "a.safetensors")
    located = locate(str(path))
    assert located.digest == sha256(path.read_bytes()).hexdigest()
    assert (located.id, located.path, located.files, located.revision) == (str(path), path, (path,), "")
    moved = path.rename(tmp_path / "elsewhere.safetensors")
    assert locate(str(moved)).digest == located.digest
    assert locate(str(weights(tmp_path / "a.safetensors", value=2.0))).digest != located.digest


def test_a_digest_is_kept_until_the_file_changes(tmp_path, monkeypatch):
    path = weights(tmp_path / "a.safetensors")
    first = locate(str(path)).digest
    monkeypatch.setattr(module.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert locate(str(path)).digest == first
    monkeypatch.undo()
    weights(path, value=2.0)
    os.utime(path, ns=(1, 1))
    assert locate(str(path)).digest != first


def test_a_folder_is_read_as_a_hugging_face_model(tmp_path):
    path = weights(tmp_path / "m" / "model.safetensors")
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"")
    located = locate(str(tmp_path / "m"))
    assert located.files == (path, tmp_path / "m" / "config.json")


def test_a_model_in_several_files_needs_all_of_them(tmp_path):
    folder = tmp_path / "m"
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weights(folder / names[0])
    index = {"weight_map": {"x": names[0], "y": names[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BenchError, match=r"lacks model-00002-of-00002\.safetensors"):
        locate(str(folder))
    weights(folder / names[1], value=2.0)
    assert [path.name for path in locate(str(folder)).weights] == names


def test_the_only_file_of_a_folder_is_taken_and_several_are_asked_about(tmp_path):
    folder = tmp_path / "deepspeed"
    weights(folder / "mp_rank_00_model_states.pt")
    assert locate(str(folder)).path == folder
    weights(folder / "other.pth")
    with pytest.raises(BenchError, match=r"several weights \(mp_rank_00_model_states\.pt, other\.pth\); name one"):
        locate(str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchError, match="holds no weights"):
        locate(str(tmp_path / "empty"))


def test_an_import_is_what_it_was_made_from_until_somebody_changes_it(tmp_path):
    path = weights(tmp_path / "i" / OURS)
    own = sha256(path.read_bytes()).hexdigest()
    write_json(tmp_path / "i" / IMPORTED, {"sha256": own, "digest": "f" * 64})
    assert locate(str(tmp_path / "i")).digest == "f" * 64
    weights(path, value=2.0)
    os.utime(path, ns=(1, 1))
    with pytest.raises(BenchError, match=r"is not what `bench import` wrote there; import it again"):
        locate(str(tmp_path / "i"))


def test_a_hub_id_leads_to_the_snapshot_in_the_cache_without_a_network(tmp_path):
    folder = cached(tmp_path, "facebook/data2vec-vision-base")
    located = locate("facebook/data2vec-vision-base")
    assert (located.path, located.revision) == (folder, COMMIT)
    assert [path.name for path in located.files] == ["model.safetensors", "config.json"]
    assert locate(f"facebook/data2vec-vision-base@{COMMIT}").digest == located.digest
    assert locate(str(folder)).digest == located.digest  # the same weights by their path


def test_an_old_model_on_the_hub_has_a_bin_file(tmp_path):
    cached(tmp_path, "microsoft/beit", names=("pytorch_model.bin", "config.json"))
    assert [path.name for path in locate("microsoft/beit").weights] == ["pytorch_model.bin"]


def test_without_a_network_the_error_says_what_to_fetch_and_where_to_put_it():
    with pytest.raises(BenchError) as caught:
        locate("facebook/data2vec-vision-base")
    for words in (
        "hf download facebook/data2vec-vision-base",
        "HF_HUB_OFFLINE",
        "HF_HOME",
        "config.json",
        "into a folder",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "message"), [(RepositoryNotFoundError, "no such model"), (GatedRepoError, "permission")]
)
def test_what_the_hub_refuses_is_said(monkeypatch, kind, message):
    def refuse(*_, local_files_only, **__):
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        error = kind.__new__(kind)
        Exception.__init__(error, "401")
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(BenchError, match=message):
        locate("facebook/data2vec-visoin-base")


def test_a_hub_model_without_weights_of_a_known_kind_is_refused(monkeypatch):
    def absent(*_, local_files_only, **__):
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        error = RemoteEntryNotFoundError.__new__(RemoteEntryNotFoundError)
        Exception.__init__(error, "404")
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)
    with pytest.raises(BenchError, match=r"has no model\.safetensors"):
        locate("someone/flax-only")


def test_timm_names_lead_to_the_hub_by_timms_registry(tmp_path):
    folder = cached(tmp_path, "timm/deit_tiny_patch16_224.fb_in1k")
    assert locate("timm:deit_tiny_patch16_224").path == folder
    assert locate("timm:deit_tiny_patch16_224.fb_in1k").path == folder
    with pytest.raises(BenchError, match=r"it has deit_tiny_patch16_224\.fb_in1k"):
        locate("timm:deit_tiny_patch16_224.fb")
    with pytest.raises(BenchError, match="Did you mean deit_tiny_patch16_224"):
        locate("timm:deit_tny_patch16_224")


def test_what_is_nowhere_is_named_with_all_that_could_be_written(tmp_path):
    with pytest.raises(BenchError, match=r"no weights 'nix' .*hub id like facebook/data2vec-vision-base, or timm:NAME"):
        locate("nix", tmp_path)
    with pytest.raises(BenchError, match=r"no weights 'some/where\.pth'"):
        locate("some/where.pth", tmp_path)


def test_nothing_heavy_is_loaded_to_find_a_file(tmp_path):
    path = weights(tmp_path / "a.safetensors")
    code = (
        f"import sys; from bench.checkpoints.locate import locate; locate({str(path)!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
