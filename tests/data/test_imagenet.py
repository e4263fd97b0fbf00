"""ImageNet is the same data in every layout, its classes are the ones they should be, and mistakes are named."""

import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import layouts
import numpy as np
import pyarrow.parquet as pq
import pytest
from layouts import CLASSES, ENGLISH, IMAGENET, WORDNET_IDS, jpeg, write
from PIL import Image

from bench.config.registry import places
from bench.data import splits
from bench.data.readers.wordnet import english_names, read_classes
from bench.data.splits import SplitRequest
from bench.errors import BenchError
from bench.planning.selection import data_roots, parse_data_dirs


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of each layout, made once; tests that change anything copy it."""
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in IMAGENET.items()}


@pytest.fixture
def copy(tmp_path):
    """A folder of a layout that a test may spoil."""
    return lambda layout: IMAGENET[layout](tmp_path / layout)


def source(root, split="train", classes=CLASSES, **options):
    return splits.open_source(SplitRequest("imagenet", split, root=str(root), options={"classes": classes, **options}))


def names(split) -> list[str]:
    return [split.name(i) for i in range(len(split))]


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_same_images_are_the_same_split_in_every_layout(made, split):
    first, *others = (source(root, split) for root in made.values())
    for other in others:
        assert names(other) == names(first)
        assert list(other.labels()) == list(first.labels())
        assert other.identity() == first.identity()
        assert splits.root_of(other) == splits.root_of(first)
        assert all(np.array_equal(other[i]["image"], first[i]["image"]) for i in range(len(first)))


@pytest.mark.parametrize("layout", IMAGENET)
def test_every_image_has_the_pixels_and_the_label_it_was_written_with(made, layout):
    for split in ("train", "val"):
        data = source(made[layout], split)
        written = {photo.name: photo for photo in layouts.photos(split)}
        assert sorted(names(data)) == sorted(written)
        for index in range(len(data)):
            photo = written[data.name(index)]
            assert data[index]["label"] == data.labels()[index] == photo.label
            assert np.array_equal(data[index]["image"], layouts.opened(photo.data))


def test_kinds_of_jpeg_that_imagenet_holds_become_rgb(copy):
    root = copy("folders")
    for number, mode in enumerate(("CMYK", "L")):
        write(root / f"train/n01440764/n01440764_{number}.JPEG", jpeg(number, mode=mode))
    png = layouts.encoded(Image.new("RGBA", (9, 7), (1, 2, 3, 4)), "png")
    write(root / "train/n01440764/n01440764_2.JPEG", png)
    data = source(root)
    assert [data[names(data).index(f"n01440764_{n}")]["image"].mode for n in range(3)] == ["RGB"] * 3


def test_the_classes_are_the_sorted_wordnet_ids():
    thousand, all_of_them = read_classes("imagenet1k", None), read_classes("imagenet22k", None)
    assert (len(thousand.ids), len(all_of_them.ids)) == (1000, 21841)
    assert list(thousand.ids) == sorted(thousand.ids)
    assert thousand.rank["n01440764"] == 0
    assert thousand.rank["n15075141"] == 999
    assert [english_names()[name] for name in WORDNET_IDS] == list(ENGLISH)
    assert read_classes("n02119789, n01440764", None).ids == ("n01440764", "n02119789")


def test_a_part_of_the_classes_has_to_be_asked_for(made):
    with pytest.raises(BenchError, match=r"ImageNet-1k has 1,000 classes.*it lacks 997: n01484850 .*and 987 more"):
        source(made["folders"], classes="imagenet1k")


def test_a_list_of_classes_may_be_a_file_beside_the_data(copy):
    root = copy("folders")
    write(root / "classes.txt", "\n".join(reversed(WORDNET_IDS)))
    assert source(root, classes="classes.txt").identity() == source(root).identity()
    with pytest.raises(BenchError, match="'cat' is not a WordNet id"):
        write(root / "classes.txt", "cat dog") and source(root, classes="classes.txt")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda train: shutil.rmtree(train / "n01443537"), r"it lacks 1: n01443537 \(goldfish\)"),
        (lambda train: write(train / "n01484850/x.jpg", jpeg(0)), "no class of it: n01484850"),
        (lambda train: (train / "n01443537").rename(train / "n01443538"), "was n01443537 renamed to n01443538"),
        (lambda train: (train / "n01443537").rename(train / "goldfish"), "no class of it: goldfish"),
        (lambda train: swap(train / "n01443537", train / "n01440764"), r"by its name an image of n0144\d+"),
        (lambda train: [path.unlink() for path in (train / "n01443537").iterdir()], "no images in the class folder"),
    ],
)
def test_a_class_folder_too_few_too_many_renamed_or_empty_is_named(copy, spoil, message):
    root = copy("folders")
    spoil(root / "train")
    with pytest.raises(BenchError, match=message):
        source(root)


def swap(first: Path, second: Path) -> None:
    first.rename(first.with_name("between"))
    second.rename(first)
    first.with_name("between").rename(second)


def test_an_image_that_lies_in_two_classes_is_named(copy):
    root = copy("folders")
    shutil.copy(root / "val/n01440764/ILSVRC2012_val_00000001.JPEG", root / "val/n02119789")
    with pytest.raises(BenchError, match=r"two images have the name 'ILSVRC2012_val_00000001' \(.*n01440764.*and"):
        source(root, "val")


def test_images_named_in_another_way_keep_their_path(tmp_path):
    for wordnet_id in WORDNET_IDS:
        write(tmp_path / f"train/{wordnet_id}/0.jpg", jpeg(0))
    assert names(source(tmp_path)) == [f"{wordnet_id}/0.jpg" for wordnet_id in WORDNET_IDS]


def test_one_folder_of_class_folders_is_train_as_imagenet22k_is_unpacked(copy):
    root = copy("folders")
    assert source(root / "train").identity() == source(root).identity()
    with pytest.raises(BenchError, match="no val of ImageNet"):
        source(root / "train", "val")


@pytest.mark.parametrize("below", ["ILSVRC/Data/CLS-LOC", "ILSVRC"])
def test_the_archive_of_kaggle_is_found_from_inside(made, below):
    assert source(made["kaggle"] / below, "val").identity() == source(made["kaggle"], "val").identity()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: (root / "LOC_val_solution.csv").unlink(),
            "LOC_val_solution.csv, which has their classes, is missing",
        ),
        (lambda root: picture(root, 3).rename(picture(root, 9)), "no class for 1 images.*val_00000009"),
        (lambda root: shutil.copy(picture(root, 3), picture(root, 9)), "no class for 1 images.*val_00000009"),
        (lambda root: table(root, "ImageId,", "Id,"), "its first line should be ImageId,PredictionString"),
        (lambda root: table(root, "n02119789", "fox"), "line 4: .* names no image with a WordNet id"),
        (lambda root: table(root, "val_00000002", "val_00000001"), "line 3: ILSVRC2012_val_00000001 occurs twice"),
        (lambda root: table(root, "n02119789", "n01440764"), r"it lacks 1: n02119789 \(kit fox\)"),
    ],
)
def test_a_flat_val_and_its_table_must_agree(copy, spoil, message):
    root = copy("kaggle")
    spoil(root)
    with pytest.raises(BenchError, match=message):
        source(root, "val")


def test_a_flat_val_of_which_some_were_not_copied_is_incomplete(copy):
    root = copy("kaggle")
    picture(root, 3).unlink()
    request = SplitRequest("imagenet", "val", str(root), {"classes": CLASSES})
    with pytest.raises(BenchError, match=r"missing 1 of the 6 pictures of LOC_val.*: ILSVRC2012_val_00000003.*--allow"):
        splits.describe(request)
    assert "missing 1 of the 6" in splits.describe(replace(request, allow_incomplete=True)).shortfall


def picture(root: Path, number: int) -> Path:
    return root / f"ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{number:08d}.JPEG"


def table(root: Path, old: str, new: str) -> None:
    path = root / "LOC_val_solution.csv"
    path.write_text(path.read_text().replace(old, new))


def test_the_test_split_is_refused_because_it_has_no_labels(made):
    with pytest.raises(BenchError, match="the labels of ImageNet's test split are not public"):
        source(made["parquet"], "test")


def test_an_unknown_split_offers_those_there_are(made):
    with pytest.raises(BenchError, match=r"no split of ImageNet 'vall'.*Did you mean val\?"):
        source(made["folders"], "vall")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ENGLISH[::-1]}, r"class 0 is 'kit fox.*in the order of the WordNet ids it is n01440764 \(tench\)"),
        ({"names": WORDNET_IDS[::-1]}, "class 0 is n02119789, but in the order of the WordNet ids it is n01440764"),
        ({"names": ENGLISH[:2]}, "2 classes, but the list of classes has 3"),
        ({"names": ("a", "b", "c")}, "its classes, a, b, c, are not those of"),
        ({"label": -1}, "there are rows without a label"),
        (
            {"label": 1},
            r"_n01440764.JPEG has the label 1, which is n01443537 \(goldfish\), but its name says n01440764",
        ),
        ({"label": 3}, "there is no label 3; the list of classes has 0 to 2"),
        ({"column": "pixels"}, "the columns are pixels, label; an image and a label are needed"),
        ({"path": "ILSVRC2012_val_00000001.JPEG"}, "two images have the name 'ILSVRC2012_val_00000001'"),
    ],
)
def test_a_table_whose_classes_labels_or_names_cannot_be_is_refused(tmp_path, change, message):
    rows = layouts.hub_rows("val")
    for row in rows:
        row["label"] = change.get("label", row["label"])
        row["image"]["path"] = change.get("path", row["image"]["path"])
        row |= {change.get("column", "image"): row.pop("image")}
    made = layouts.table(rows, {"label": list(change.get("names", ENGLISH))})
    pq.write_table(made.select(sorted(made.column_names, reverse=True)), tmp_path / "validation.parquet")
    with pytest.raises(BenchError, match=message):
        source(tmp_path, "val")


def test_rows_without_file_names_are_named_by_their_number(tmp_path):
    rows = [{**row, "image": {**row["image"], "path": None}} for row in layouts.hub_rows("val")]
    pq.write_table(layouts.table(rows, {}), tmp_path / "validation.parquet")
    assert names(source(tmp_path, "val"))[:3] == ["row/00000000", "row/00000003", "row/00000001"]


def test_a_damaged_parquet_file_is_named(copy):
    root = copy("parquet")
    path = next((root / "data").glob("train-*"))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BenchError, match=rf"{path.name} cannot be unpacked"):
        source(root)


def test_parquet_is_read_without_the_package_datasets(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for layout in IMAGENET:
        assert len(source(made[layout])) == 12
    with pytest.raises(BenchError, match=r"needs the package datasets.*hf download ILSVRC/imagenet-1k"):
        source("hf:ILSVRC/imagenet-1k")


@pytest.mark.skipif(not layouts.HAS_HUB, reason="the package datasets is not installed")
def test_a_data_set_of_the_hub_is_read_where_the_package_puts_it(made):
    data = source(f"hf:{made['parquet']}", "val")
    assert data.identity() == source(made["parquet"], "val").identity()
    assert np.array_equal(data[0]["image"], source(made["folders"], "val")[0]["image"])


def test_a_data_set_of_the_hub_is_no_path():
    folders = parse_data_dirs(["imagenet1k=hf:a/b", "hf:c/d@e"])
    assert data_roots(folders, places()) == {"imagenet1k": "hf:a/b", "": "hf:c/d@e"}


@pytest.mark.skipif(not layouts.HAS_HUB, reason="the package datasets is not installed")
def test_a_hub_that_cannot_be_reached_says_what_to_download(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(BenchError, match=r"cannot be loaded \(no network\).*hf download nobody/nothing"):
        source("hf:nobody/nothing")


def test_a_folder_of_something_else_says_what_is_read(tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(BenchError, match=r"no train of ImageNet; it has notes/\. What is read: folders train/"):
        source(tmp_path)
    with pytest.raises(BenchError, match="No such file"):
        source(tmp_path / "nowhere")
    write(tmp_path / "train/goldfish/0.jpg", jpeg(0))
    with pytest.raises(BenchError, match=r"its folders, goldfish, are not classes of ImageNet.*take the task folder"):
        source(tmp_path)
    with pytest.raises(BenchError, match="give --data-dir PATH"):
        splits.open_source(SplitRequest("imagenet", "train"))


def test_the_minival_is_a_part_of_each_class_that_train_then_lacks(made):
    whole, train, minival = (
        source(made["shards"], split, minival_fraction=fraction)
        for split, fraction in (("train", 0.0), ("train", 0.25), ("minival", 0.25))
    )
    assert sorted(names(train) + names(minival)) == sorted(names(whole))
    assert np.bincount(minival.labels()).tolist() == [1, 1, 1]
    assert names(minival) == names(source(made["folders"], "minival", minival_fraction=0.25))
    with pytest.raises(BenchError, match="set minival_fraction"):
        source(made["shards"], "minival")


def test_a_damaged_image_is_named_when_it_is_met_or_left_out_when_that_is_allowed(copy):
    root = copy("folders")
    path = write(root / "train/n01443537/n01443537_9.JPEG", jpeg(0, (200, 200))[:3000])
    data = source(root)
    with pytest.raises(BenchError, match=r"n01443537_9.JPEG cannot be read as an image"):
        data[names(data).index("n01443537_9")]
    left = source(root, max_unreadable=1)
    assert names(left) == [name for name in names(data) if name != "n01443537_9"]
    assert list(left.unreadable) == ["n01443537_9"]
    write(path.with_name("n01443537_8.JPEG"), b"")
    with pytest.raises(BenchError, match="2 images cannot be read, more than --max-unreadable 1"):
        source(root, max_unreadable=1)


def test_a_file_that_shrank_after_listing_is_named(copy):
    root = copy("folders")
    data = source(root)
    write(root / "train/n01440764/n01440764_100.JPEG", b"short")
    with pytest.raises(BenchError, match=r"n01440764_100.JPEG was .* bytes when it was listed and is shorter now"):
        data[0]


def test_a_split_can_be_handed_to_another_process(made):
    for root in made.values():
        first = source(root, "val")
        again = pickle.loads(pickle.dumps(first))
        assert again.identity() == first.identity()
        assert np.array_equal(again[5]["image"], first[5]["image"])


def test_where_data_lie_is_not_in_their_description_but_the_classes_are(made):
    data = splits.describe(
        SplitRequest("imagenet", "val", str(made["shards"]), {"classes": CLASSES, "max_unreadable": 1})
    )
    assert data.options == {"classes": CLASSES}
    assert data.images == 6
