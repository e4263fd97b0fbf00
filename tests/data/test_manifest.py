"""A manifest says which bytes a split holds, wherever they lie; a copy that is not whole is noticed."""

import os
import shutil
from pathlib import Path

import layouts
import pytest
from PIL import Image

from bench.config.schema import Expected, Model, Protocol
from bench.config.stage import Data, Stage
from bench.data import manifest, scan_progress, splits
from bench.data.manifest import Piece
from bench.data.splits import SplitRequest
from bench.errors import BenchError
from bench.files import write_json
from bench.launch.settings import Settings
from bench.runs.run import Run
from bench.training import worker


def paint(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), grey).save(path)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def animals(tmp_path) -> Path:
    """Four images in each of two classes, in train and val."""
    root = tmp_path / "animals"
    for split in ("train", "val"):
        for number in range(8):
            paint(root / split / ("cat" if number < 4 else "dog") / f"p_{number + 1:02}.png", 10 * number)
    return root


def described(root: Path, split: str = "train", **options):
    return splits.describe(SplitRequest("folder", split, str(root), **options))


def read(monkeypatch) -> list[str]:
    """The names of the files that are read from now on, as they are."""
    ids: list[str] = []
    hash_piece = manifest.hash_piece

    def watched(piece: Piece) -> str:
        ids.append(piece.id)
        return hash_piece(piece)

    monkeypatch.setattr(manifest, "hash_piece", watched)
    return ids


def flip_a_bit(path: Path) -> None:
    """Another content of the same size, at the same time of change."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # in the checksum of a PNG's last part
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def test_one_bit_of_one_image_changes_the_root_hash(animals):
    before = described(animals)
    flip_a_bit(animals / "train/cat/p_01.png")
    after = described(animals)
    assert after.identity == before.identity  # the same names, sizes and classes
    assert after.manifest != before.manifest
    assert len(after.manifest) == 32


def test_a_split_has_a_hash_of_its_own(animals):
    (animals / "val/cat/p_01.png").write_bytes((animals / "val/cat/p_02.png").read_bytes())
    assert described(animals).manifest != described(animals, "val").manifest


def test_a_folder_that_is_copied_keeps_its_root_hash(animals, tmp_path):
    before = described(animals)
    shutil.copytree(animals, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    assert described(tmp_path / "elsewhere").manifest == before.manifest


def test_what_was_read_before_is_not_read_again(animals, monkeypatch):
    before = described(animals)
    names = read(monkeypatch)
    assert described(animals).manifest == before.manifest
    assert names == []


def test_a_touched_file_alone_is_read_again(animals, monkeypatch):
    before = described(animals)
    names = read(monkeypatch)
    os.utime(animals / "train/dog/p_07.png", ns=(1, 1))
    assert described(animals).manifest == before.manifest
    assert names == ["dog/p_07.png"]


def test_a_part_of_a_split_needs_the_files_of_that_part_only(animals, monkeypatch):
    names = read(monkeypatch)
    part = described(animals, limit=2)
    assert len(names) == part.images == 2
    assert part.manifest != described(animals).manifest


def test_a_damaged_cache_is_made_anew(animals, cache):
    before = described(animals)
    for stored in (cache / "manifests").iterdir():
        stored.write_bytes(stored.read_bytes()[:-3] + b"\xff")
    assert described(animals).manifest == before.manifest


def test_bytes_that_change_behind_the_time_of_change_are_found_by_reading_anew(animals, caplog):
    source = splits.open_source(SplitRequest("folder", "train", root=str(animals)))
    before = splits.manifest_of(source)
    path = animals / "train/cat/p_01.png"
    flip_a_bit(path)
    os.utime(path, ns=(0, path.stat().st_mtime_ns - 1))
    assert splits.manifest_of(source) == before
    assert splits.manifest_of(source, anew=True) != before
    assert "the bytes differ from those read before" in caplog.text


def test_a_reading_that_was_stopped_goes_on(animals, monkeypatch):
    def broken(piece: Piece) -> str:
        raise BenchError("the disk is gone")

    monkeypatch.setattr(manifest, "BATCH_FILES", 1)
    names = read(monkeypatch)
    whole = manifest.hash_piece
    monkeypatch.setattr(manifest, "hash_piece", lambda piece: broken(piece) if "dog" in piece.id else whole(piece))
    with pytest.raises(BenchError, match="the disk is gone"):
        described(animals)
    monkeypatch.setattr(manifest, "hash_piece", whole)
    described(animals)
    assert sorted(names) == sorted(set(names))
    assert len(names) == 8


def test_a_range_of_a_file_is_hashed_for_itself(tmp_path):
    first, second = tmp_path / "first.bin", tmp_path / "second.bin"
    first.write_bytes(b"....picture")
    second.write_bytes(b"picture....")
    tail = Piece("a", str(first), 7, 0, offset=4)
    whole = Piece("a", str(second), 7, 0)
    assert manifest.hash_piece(tail) == manifest.hash_piece(whole)


def test_the_order_of_files_changes_nothing():
    pieces = [Piece("a", "/1", 3, 0), Piece("b", "/2", 4, 0)]
    assert manifest.root_hash(pieces, ["x", "y"]) == manifest.root_hash(pieces[::-1], ["y", "x"])
    assert manifest.root_hash(pieces, ["x", "y"]) != manifest.root_hash(pieces, ["y", "x"])


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    paint(tmp_path / "a.png", 1)
    piece = manifest.whole_file(tmp_path / "a.png", "a.png")
    with pytest.raises(BenchError, match=r"'a\.png' occurs twice"):
        manifest.manifest([piece, piece], "here")


def test_a_file_that_shrinks_or_goes_is_named(tmp_path):
    with pytest.raises(BenchError, match=r"gone\.tar: No such file"):
        manifest.whole_file(tmp_path / "gone.tar", "gone.tar")
    (tmp_path / "cut.tar").write_bytes(b"12345")
    with pytest.raises(BenchError, match=r"cut\.tar was 9 bytes when it was listed"):
        manifest.manifest([Piece("cut.tar", str(tmp_path / "cut.tar"), 9, 0)], "here")


def test_data_that_are_generated_have_no_manifest():
    assert splits.describe(SplitRequest("demo", "val")).manifest == ""


def test_a_long_reading_says_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(scan_progress, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(scan_progress, "INTERVAL_SECONDS", 0.0)
    with scan_progress.counter("reading files", 4, 2_000_000_000) as count:
        count.advance(1, 500_000_000)
    assert capsys.readouterr().err.startswith("reading files: 1 of 4, 0.5 of 2.0 GB, 0:00 left")


def test_a_short_reading_says_nothing(capsys):
    with scan_progress.counter("reading files", 4) as count:
        count.advance(4)
    assert capsys.readouterr().err == ""


NUMBERED = Expected(images=8, per_class=(4, 4), names="p_{:02d}")


def test_a_complete_split_is_reportable(animals):
    assert described(animals, expected=NUMBERED).shortfall == ""


def test_images_that_are_missing_are_named_with_their_class(animals):
    for name in ("cat/p_02.png", "dog/p_07.png", "dog/p_08.png"):
        (animals / "train" / name).unlink()
    with pytest.raises(BenchError) as error:
        described(animals, expected=NUMBERED)
    message = str(error.value)
    assert "5 of 8 images; missing: p_02, p_07 to p_08; classes with fewer than 4: cat (3), dog (2)" in message
    assert "--allow-incomplete" in message


def test_images_that_do_not_belong_are_named(animals):
    paint(animals / "train/cat/p_09.png", 1)
    with pytest.raises(BenchError, match=r"9 of 8 images; not of it: p_09; classes with more than 4: cat \(5\)"):
        described(animals, expected=NUMBERED)


def test_an_exchanged_image_is_noticed_though_the_number_is_right(animals):
    (animals / "train/cat/p_01.png").rename(animals / "train/cat/other.png")
    with pytest.raises(BenchError, match="8 of 8 images; missing: p_01; not of it: other"):
        described(animals, expected=NUMBERED)


def test_files_named_in_another_way_are_only_counted(animals):
    expected = Expected(images=8, names="ILSVRC2012_val_{:08d}")
    assert described(animals, expected=expected).incomplete == ""


def test_an_incomplete_split_that_is_allowed_is_not_reportable(animals, caplog):
    (animals / "train/cat/p_02.png").unlink()
    data = described(animals, expected=NUMBERED, allow_incomplete=True)
    assert data.shortfall == "7 of 8 images"
    assert "results are not reportable: 7 of 8 images" in caplog.text
    assert described(animals, expected=NUMBERED, allow_incomplete=True, limit=2).shortfall == (
        "--limit left 2 images; 7 of 8 images"
    )


def test_what_is_held_out_for_choosing_is_not_missing(animals):
    options = {"minival_fraction": 0.25}
    data = splits.describe(SplitRequest("folder", "train", str(animals), options, expected=NUMBERED))
    assert (data.images, data.incomplete) == (6, "")


def test_an_image_that_is_missing_from_a_shard_is_named(tmp_path):
    root = layouts.shards(tmp_path)
    expected = Expected(images=7, names="ILSVRC2012_val_{:08d}")
    with pytest.raises(BenchError, match="6 of 7 images; missing: ILSVRC2012_val_00000007"):
        splits.describe(SplitRequest("imagenet", "val", str(root), {"classes": layouts.CLASSES}, expected=expected))


def test_an_image_that_changed_since_the_plan_stops_the_stage(animals):
    data = described(animals)
    assert len(worker.open_split(data, Settings())) == 8
    flip_a_bit(animals / "train/cat/p_01.png")
    with pytest.raises(BenchError, match="folder/train has changed since the stage was planned"):
        worker.open_split(data, Settings())


def test_one_process_reads_the_files_for_all(animals, monkeypatch):
    data = described(animals)
    names = read(monkeypatch)
    flip_a_bit(animals / "train/cat/p_01.png")
    monkeypatch.setenv("RANK", "1")
    worker.open_split(data, Settings())
    assert names == []


def stage(kind: str, data: Data, **values) -> Stage:
    return Stage(kind=kind, method="vit", task="pets", model=Model(), protocol=Protocol(), data={"val": data}, **values)


def test_a_score_is_not_reportable_when_what_it_rests_on_was_not_whole(tmp_path):
    whole = Data(dataset="pets", split="val", identity="v", images=10, manifest="abc")
    halved = Data(dataset="pets", split="train", identity="t", images=10, incomplete="10 of 20 images")
    pretrained = stage("pretrain", halved)
    scored = stage("evaluate", whole, parents={"model": pretrained.key})
    before, run = (Run.open(tmp_path, each) for each in (pretrained, scored))
    for each, parents in ((before, {}), (run, {pretrained.key: str(before.root)})):
        write_json(each.path("launch.json"), {"parents": parents})
    assert worker._shortfalls(before) == worker._shortfalls(run) == ["pets/train: 10 of 20 images"]
    assert worker._data_facts(scored)["val"]["manifest"] == "abc"
    assert worker._data_facts(pretrained)["val"]["shortfall"] == "10 of 20 images"


def test_the_content_of_files_is_in_the_key_of_a_stage():
    data = Data(dataset="pets", split="val", identity="v", images=10)
    keys = {stage("evaluate", data.model_copy(update={"manifest": root})).key for root in ("", "abc", "abd")}
    assert len(keys) == 3
