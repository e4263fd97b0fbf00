"""Tar shards are read at random by an index that is made once, and a shard that is not whole is named."""

import tarfile

import layouts
import numpy as np
import pytest
from layouts import CLASSES, WORDNET_IDS, jpeg, shard

from bench.data import splits
from bench.data.readers import tar_shards
from bench.data.splits import SplitRequest
from bench.errors import BenchError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    return layouts.shards(tmp_path / "shards")


def source(root, split="train", **options):
    return splits.open_source(SplitRequest("imagenet", split, root=str(root), options={"classes": CLASSES, **options}))


def names(split) -> list[str]:
    return [split.name(i) for i in range(len(split))]


def sample(key: str, seed: int = 0, label: int = 0, **members: bytes) -> tuple[str, dict[str, bytes]]:
    return key, {"jpg": jpeg(seed), "cls": str(label).encode()} | members


def test_nothing_is_unpacked_and_the_index_is_made_once(root, cache, monkeypatch):
    first = source(root)
    assert [path.suffix for path in cache.rglob("*") if path.is_file()] == [".npz"]
    monkeypatch.setattr(tar_shards, "read_samples", lambda shard: pytest.fail("indexed a second time"))
    again = source(root)
    assert again.identity() == first.identity()
    assert np.array_equal(again[7]["image"], first[7]["image"])


def test_several_processes_index_what_one_would(root, cache, monkeypatch):
    first = source(root)
    for stored in (cache / "shards").iterdir():
        stored.unlink()
    monkeypatch.setattr(tar_shards, "SHARDS_OF_A_PROCESS", 1)
    monkeypatch.setattr(tar_shards.os, "cpu_count", lambda: 2)
    again = source(root)
    assert again.identity() == first.identity()
    assert np.array_equal(again[7]["image"], first[7]["image"])


def test_a_shard_that_changed_is_indexed_again(root):
    source(root)
    shard(root / "imagenet1k-train-0001.tar", [sample("n01440764_7")])
    assert "n01440764_7" in names(source(root))


def test_a_damaged_index_is_made_anew(root, cache):
    source(root)
    (stored,) = (cache / "shards").iterdir()
    stored.write_bytes(stored.read_bytes()[:100])
    assert len(source(root)) == 12


def test_labels_in_json_are_the_same_labels(root, tmp_path):
    assert source(layouts.shards(tmp_path / "json", label="json")).identity() == source(root).identity()


def test_keys_without_a_label_member_tell_their_class_themselves(tmp_path):
    shard(tmp_path / "train.tar", [(f"{name}_1", {"jpeg": jpeg(1)}) for name in WORDNET_IDS])
    assert list(source(tmp_path).labels()) == [0, 1, 2]


def test_keys_may_hold_folders_and_other_members_are_passed_over(tmp_path):
    hidden = ("._b", {"jpg": b"left by another system"})
    shard(tmp_path / "train-0.tar", [sample("./a/000", txt=b"tench", json=b"{}"), hidden, sample("b/000", 1)])
    assert names(source(tmp_path)) == ["a/000", "b/000"]


def test_long_names_are_read_whole(tmp_path):
    key = "deep/" * 30 + "n01440764_5"
    shard(tmp_path / "train-0.tar", [sample(key)])
    assert names(source(tmp_path)) == ["n01440764_5"]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_shard_cut_in_the_middle_is_named(root, share):
    path = root / "imagenet1k-train-0001.tar"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BenchError, match=r"imagenet1k-train-0001.tar is (damaged or )?cut short"):
        source(root)


def test_a_shard_cut_between_two_members_is_named(root):
    path = root / "imagenet1k-train-0001.tar"
    with tarfile.open(path) as archive:
        third = archive.getmembers()[4]
    path.write_bytes(path.read_bytes()[: third.offset])
    with pytest.raises(BenchError, match=r"0001.tar is cut short: the blocks that end a tar file are missing"):
        source(root)


def test_an_empty_file_and_another_kind_of_file_are_named(root):
    for content in (b"", b"this is a shopping list" * 100):
        (root / "imagenet1k-train-0001.tar").write_bytes(content)
        with pytest.raises(BenchError, match=r"0001.tar is damaged or cut short"):
            source(root)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([sample("n01440764_1"), sample("n01440764_1")], "train-0.tar: the key n01440764_1 occurs twice"),
        ([("000", {"jpg": jpeg(0)})], "the sample 000 has no label: no 000.cls, no label in 000.json"),
        ([sample("000", label=3)], "the label '3' of 000 is none of the 3"),
        ([sample("000", cls=b"fox")], "the label 'fox' of 000 is none"),
        ([("000", {"jpg": jpeg(0), "json": b"{"})], "000.json holds no label that can be read"),
        ([sample("n01440764_1", label=2)], r"has the label 2, which is n02119789 \(kit fox\), but its name says n0144"),
    ],
)
def test_a_sample_that_is_double_or_without_a_label_is_named(tmp_path, samples, message):
    shard(tmp_path / "train-0.tar", samples)
    with pytest.raises(BenchError, match=message):
        source(tmp_path)


def test_a_key_in_two_shards_is_named_with_both(root):
    shard(root / "imagenet1k-train-0002.tar", [sample("n01440764_100")])
    with pytest.raises(BenchError, match=r"the name 'n01440764_100' \(.*-000\d.tar and .*-0002.tar\)"):
        source(root)


def test_packed_shards_and_the_original_archives_are_refused(tmp_path):
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(b"")
    with pytest.raises(BenchError, match=r"ILSVRC2012_img_train.tar: the original archives hold no labelled samples"):
        source(tmp_path)
    (tmp_path / "train-0.tar.gz").write_bytes(b"")
    with pytest.raises(BenchError, match=r"train-0.tar.gz: compressed shards cannot be read at random"):
        source(tmp_path)
