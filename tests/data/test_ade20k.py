"""ADE20K scene parsing: 0 is nothing, 1 to 150 are 0 to 149, and what cannot be ground truth is named."""

import io
import shutil

import layouts
import numpy as np
import pyarrow.parquet as pq
import pytest
from layouts import ADE20K, ade_folders, encoded, jpeg, write
from PIL import Image

from bench.data import splits
from bench.data.datasets.ade20k import CLASSES
from bench.data.splits import SplitRequest
from bench.errors import BenchError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=ADE20K)
def root(request, tmp_path):
    """The data in each layout."""
    return ADE20K[request.param](tmp_path / request.param)


@pytest.fixture
def home(tmp_path):
    """A folder of the data that a test may spoil."""
    return ade_folders(tmp_path) / "ADEChallengeData2016"


def source(root, split="val", **options):
    return splits.open_source(SplitRequest("ade20k", split, root=str(root), options=options))


def names(split) -> list[str]:
    return [split.name(i) for i in range(len(split))]


@pytest.mark.parametrize("split", ["train", "val"])
def test_each_image_comes_with_its_map_renumbered_once(root, split):
    data = source(root, split)
    written = list(layouts.scenes(split))
    assert names(data) == [name for name, _, _ in written]
    for index, (_, photo, covered) in enumerate(written):
        on_disk = np.array(Image.open(io.BytesIO(covered))).astype(int)
        sample = data[index]
        assert np.array_equal(sample["image"], Image.open(io.BytesIO(photo)))
        assert sample["map"].dtype == np.uint8
        assert (sample["map"][on_disk == 0] == 255).all()
        assert np.array_equal(sample["map"][on_disk > 0], on_disk[on_disk > 0] - 1)
        assert sample["map"][0, :4].tolist() == [255, 0, 149, 255]


def test_both_layouts_are_the_same_data(tmp_path):
    first, second = (source(make(tmp_path / name), "train") for name, make in ADE20K.items())
    assert first.identity() == second.identity()
    assert splits.root_of(first) == splits.root_of(second)


def test_there_are_150_classes_and_no_class_of_an_image(root):
    data = source(root)
    assert (len(CLASSES), len(set(CLASSES)), CLASSES[0], CLASSES[149]) == (150, 150, "wall", "flag")
    assert set(data.labels()) == {-1}


def test_the_files_are_all_images_and_all_maps(root):
    pieces = source(root).files()
    assert len({piece.id for piece in pieces}) == len(pieces) == 6
    assert sorted(piece.image for piece in pieces) == [0, 0, 1, 1, 2, 2]


def test_a_changed_map_changes_the_identity_of_the_bytes(home):
    before = splits.root_of(source(home))
    write(home / "annotations/validation/ADE_val_00000001.png", covering(2))
    assert splits.root_of(source(home)) != before


def test_the_minival_is_a_share_of_train(root):
    train, minival = (source(root, split, minival_fraction=0.34) for split in ("train", "minival"))
    assert sorted(names(train) + names(minival)) == names(source(root, "train"))
    assert len(minival) == 2
    assert np.array_equal(
        minival[0]["map"], source(root, "train")[names(source(root, "train")).index(minival.name(0))]["map"]
    )


def covering(label: int, size: tuple[int, int] = (40, 36), mode: str = "L") -> bytes:
    """A map file in which one label covers everything."""
    return encoded(Image.new("L", size, label).convert(mode), "png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (covering(151), "ADE_val_00000001.png has the label 151; there are 0, for no class, and 1 to 150"),
        (covering(3, (20, 18)), r"ADE_val_00000001.png is 20 x 18 pixels, but its image is 40 x 36"),
        (covering(3, (36, 40)), r"36 x 40 pixels, but its image is 40 x 36"),
        (covering(3, mode="RGB"), "ADE_val_00000001.png is an image of mode RGB; a label map has one number a pixel"),
        (covering(3, mode="LA"), "an image of mode LA"),
        (covering(3)[:40], "ADE_val_00000001.png cannot be read as a label map"),
    ],
)
def test_a_map_that_cannot_be_is_named_when_it_is_read(home, content, message):
    write(home / "annotations/validation/ADE_val_00000001.png", content)
    data = source(home)
    with pytest.raises(BenchError, match=message):
        data[0]
    assert data[1]["map"].max() == 255


def test_a_map_in_parquet_that_cannot_be_is_named_as_well(tmp_path):
    picture = {"bytes": jpeg(0, (40, 36)), "path": "ADE_val_00000001.jpg"}
    rows = [{"image": picture, "annotation": {"bytes": covering(151), "path": "ADE_val_00000001.png"}}]
    pq.write_table(layouts.table(rows, {}), tmp_path / "validation.parquet")
    with pytest.raises(BenchError, match=r"validation-.*ADE_val_00000001 has the label 151"):
        source(tmp_path)[0]


def test_swapped_folders_are_recognised(home):
    (home / "images").rename(home / "x")
    (home / "annotations").rename(home / "images")
    (home / "x").rename(home / "annotations")
    with pytest.raises(BenchError, match=r"images/validation holds the label maps .*: the folders were swapped"):
        source(home)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (
            "annotations",
            "ADE_val_00000002.png",
            r"1 of 3 files of .*images/validation have no label map .*_00000002.jpg",
        ),
        ("images", "ADE_val_00000002.jpg", r"1 of 3 files of .*annotations/validation have no image .*_00000002.png"),
    ],
)
def test_an_image_without_map_and_the_reverse_are_named(home, kind, name, message):
    (home / kind / "validation" / name).unlink()
    with pytest.raises(BenchError, match=message):
        source(home)


def test_maps_saved_as_jpeg_are_refused(home):
    path = home / "annotations/validation/ADE_val_00000002.png"
    write(path.with_suffix(".jpg"), jpeg(0))
    path.unlink()
    with pytest.raises(BenchError, match=r"ADE_val_00000002.jpg: a label map is a PNG"):
        source(home)


def test_a_damaged_image_is_named_or_left_out_with_its_map(home):
    write(home / "images/validation/ADE_val_00000002.jpg", jpeg(0, (200, 200))[:2000])
    with pytest.raises(BenchError, match=r"ADE_val_00000002.jpg cannot be read as an image"):
        source(home)[1]
    left = source(home, max_unreadable=1)
    assert names(left) == ["ADE_val_00000001", "ADE_val_00000003"]
    assert np.array_equal(left[1]["map"], source(home)[2]["map"])


@pytest.mark.parametrize(
    "sign",
    ["index_ade20k.mat", "ADE20K_2021_17_01/index_ade20k.pkl", "images/training/a/abbey/ADE_train_00000970_seg.png"],
)
def test_the_full_release_is_recognised_and_refused(tmp_path, sign):
    write(tmp_path / sign, b"")
    with pytest.raises(BenchError, match=r"full ADE20K release .*ADEChallengeData2016.zip"):
        source(tmp_path)


def test_the_full_release_in_parquet_is_refused(tmp_path):
    pq.write_table(layouts.table([{"image": 1, "objects": 2, "segmentations": 3}], {}), tmp_path / "validation.parquet")
    with pytest.raises(BenchError, match=r"full ADE20K release .*scene_parse_150"):
        source(tmp_path)


def test_the_test_split_and_unknown_ones_are_refused(root):
    with pytest.raises(BenchError, match="label maps of ADE20K's test split are not public"):
        source(root, "test")
    with pytest.raises(BenchError, match=r"no split of ADE20K 'vall'.*Did you mean val\?"):
        source(root, "vall")
    with pytest.raises(BenchError, match="set minival_fraction"):
        source(root, "minival")


def test_another_folder_says_what_is_read(tmp_path, home):
    with pytest.raises(BenchError, match=r"no val of ADE20K. What is read: ADEChallengeData2016/"):
        source(write(tmp_path / "other/notes.txt", "x").parent)
    shutil.rmtree(home / "images/validation")
    with pytest.raises(BenchError, match=r"images/validation: No such file"):
        source(home)
    with pytest.raises(BenchError, match="give --data-dir PATH"):
        splits.open_source(SplitRequest("ade20k", "val"))
