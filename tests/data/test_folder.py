"""Images in folders are read as torchvision reads them, and every mistake in them is named."""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from bench.data import datasets as datasets_module
from bench.data import splits
from bench.data.splits import SplitRequest
from bench.errors import BenchError


def paint(path: Path, seed: int = 0, size: tuple[int, int] = (12, 9), mode: str = "RGB", **options) -> Path:
    """A small noisy image in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def animals(tmp_path) -> Path:
    """Twenty cats and ten dogs to learn from, two of each to be scored on."""
    root = tmp_path / "animals"
    for i in range(20):
        paint(root / f"train/cat/{i:02}.png", seed=i)
    for i in range(10):
        paint(root / f"train/dog/{i:02}.jpg", seed=100 + i)
    for name in ("cat", "dog"):
        for i in range(2):
            paint(root / f"val/{name}/{i}.webp", seed=200 + i)
    return root


def source(root: Path, split: str = "train", limit: float | None = None, **options):
    return splits.open_source(SplitRequest("folder", split, root=str(root), options=options, limit=limit))


def names(split) -> list[str]:
    return [split.name(i) for i in range(len(split))]


def test_files_classes_and_order_are_those_of_torchvision(animals):
    paint(animals / "train/cat/deep/er/x.png")
    paint(animals / "train/cat/zebra.png")
    paint(animals / "train/cat/deep-too/y.PNG")
    (animals / "train/cat/notes.txt").write_text("not listed")
    theirs = ImageFolder(str(animals / "train"))
    ours = source(animals)
    assert list(ours.classes) == theirs.classes
    assert [str(animals / "train" / name) for name in names(ours)] == [path for path, _ in theirs.samples]
    assert list(ours.labels()) == theirs.targets


def odd_pictures(folder: Path) -> None:
    """One image of each kind that people have."""
    for mode in ("RGBA", "L", "P", "CMYK", "1", "LA"):
        paint(folder / f"{mode}.{'tiff' if mode == 'CMYK' else 'png'}", mode=mode)
    paint(folder / "cmyk.jpg", mode="CMYK")
    paint(folder / "grey.jpg", mode="L")
    paint(folder / "dot.png", size=(1, 1))
    paint(folder / "long.webp", size=(300, 2))
    paint(folder / "clear.png", mode="P", transparency=3)
    Image.fromarray((np.arange(60).reshape(6, 10) * 1000).astype(np.uint16)).save(folder / "grey16.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter to be seen upright
    paint(folder / "turned.jpg", size=(12, 8), exif=exif)


def test_every_kind_of_image_has_the_pixels_that_torchvision_gives(tmp_path):
    odd_pictures(tmp_path / "train/odd")
    theirs = ImageFolder(str(tmp_path / "train"))
    ours = source(tmp_path)
    assert len(ours) == len(theirs) == 13
    for i, (picture, _) in enumerate(theirs):
        assert ours[i]["image"].mode == "RGB"
        np.testing.assert_array_equal(np.asarray(ours[i]["image"]), np.asarray(picture), err_msg=ours.name(i))


def test_the_rotation_in_the_exif_data_is_applied_only_when_asked_for(tmp_path):
    odd_pictures(tmp_path / "train/odd")
    turned = names(source(tmp_path)).index("odd/turned.jpg")
    assert source(tmp_path)[turned]["image"].size == (12, 8)
    assert source(tmp_path, exif_rotate=True)[turned]["image"].size == (8, 12)


def test_a_sample_carries_the_label_of_its_folder(animals):
    train = source(animals)
    assert [train[i]["label"] for i in (0, 19, 20, 29)] == [0, 0, 1, 1]


@pytest.mark.parametrize("split", ["val", "minival"])
def test_a_class_that_train_does_not_have_is_named(animals, split):
    shutil.copytree(animals / "val", animals / "minival", dirs_exist_ok=True)
    paint(animals / split / "dogs/0.png")
    with pytest.raises(BenchError, match=r"train has no class 'dogs'. Did you mean dog\?"):
        source(animals, split)


def test_a_class_that_val_lacks_is_named(animals):
    shutil.rmtree(animals / "val/dog")
    with pytest.raises(BenchError, match="val lacks the class 'dog', which train has"):
        source(animals, "val")


def test_an_empty_class_folder_is_named(animals):
    (animals / "train/bird").mkdir()
    with pytest.raises(BenchError, match="no readable images in the class folder bird"):
        source(animals)


def damaged(folder: Path) -> dict[str, str]:
    """Four files that are no images, and what is to be said of them."""
    (folder / "text.jpg").write_text("this is a shopping list")
    (folder / "zero.png").write_bytes(b"")
    whole = paint(folder / "half.jpg", size=(200, 200)).read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    return {"text.jpg": "not an image", "zero.png": "zero bytes", "half.jpg": "truncated", "gone.jpg": "No such file"}


def test_unreadable_files_are_an_error_that_names_each_and_why(animals):
    expected = damaged(animals / "train/cat")
    with pytest.raises(BenchError, match=r"4 of 34 images cannot be read.*--max-unreadable 4") as error:
        source(animals, max_unreadable=3)
    for name, why in expected.items():
        assert f"cat/{name} (" in str(error.value)
        assert why in str(error.value).split(f"cat/{name} (")[1].split(")")[0]


def test_unreadable_files_within_the_allowance_are_left_out_and_reported(animals, caplog):
    whole = source(animals)
    damaged(animals / "train/cat")
    with caplog.at_level(logging.WARNING):
        left = source(animals, max_unreadable=4)
    assert names(left) == names(whole)
    assert left.identity() == whole.identity()
    assert "cat/text.jpg (not an image)" in caplog.text


def test_a_class_of_which_no_file_can_be_read_is_empty(animals):
    (animals / "train/bird").mkdir()
    (animals / "train/bird/0.jpg").write_text("tweet")
    with pytest.raises(BenchError, match="no readable images in the class folder bird"):
        source(animals, max_unreadable=1)


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "bmp"])
def test_half_a_file_is_unreadable_in_every_format(tmp_path, suffix):
    whole = paint(tmp_path / f"train/a/half.{suffix}", size=(64, 64)).read_bytes()
    (tmp_path / f"train/a/half.{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BenchError, match=f"a/half.{suffix}"):
        source(tmp_path)


def test_a_repaired_file_is_checked_again(animals):
    (animals / "train/cat/00.png").write_bytes(b"")
    with pytest.raises(BenchError, match=r"cat/00\.png"):
        source(animals)
    paint(animals / "train/cat/00.png")
    assert len(source(animals)) == 30


def test_files_checked_before_are_not_decoded_again(animals, monkeypatch):
    source(animals)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded a second time"))
    assert len(source(animals)) == 30


def test_a_damaged_cache_is_made_anew(animals, cache):
    source(animals)
    (stored,) = (cache / "pictures").iterdir()
    stored.write_text('{"cat/00.pn')
    assert len(source(animals)) == 30
    assert stored.read_text().endswith("}")


def test_a_file_damaged_after_listing_is_named_when_it_is_read(animals):
    train = source(animals)
    (animals / "train/cat/03.png").write_bytes(b"now something else")
    with pytest.raises(BenchError, match=r"cat/03\.png was readable when it was listed"):
        train[3]


def test_the_identity_says_what_the_images_are_and_not_where(animals, tmp_path):
    before = source(animals).identity()
    moved = shutil.move(animals, tmp_path / "elsewhere")
    assert source(moved).identity() == before
    os.rename(moved / "train/cat/00.png", moved / "train/cat/0.png")
    assert source(moved).identity() != before


@pytest.mark.parametrize("change", ["relabelled", "resized"])
def test_the_identity_changes_with_the_images(animals, change):
    before = source(animals).identity()
    if change == "relabelled":
        os.rename(animals / "train/cat/05.png", animals / "train/dog/05.png")
    else:
        paint(animals / "train/cat/05.png", size=(13, 9))
    assert source(animals).identity() != before


def test_unlabelled_images_come_from_any_tree(animals, tmp_path):
    paint(tmp_path / "loose/a.jpg")
    paint(tmp_path / "loose/x/y/b.png")
    loose = source(animals, "unlabelled", path=str(tmp_path / "loose"))
    assert names(loose) == ["a.jpg", "x/y/b.png"]
    assert (loose.classes, loose[1]["label"]) == ((), -1)


def test_without_unlabelled_images_those_of_train_are_taken_and_never_those_of_val(animals):
    unlabelled = source(animals, "unlabelled")
    assert names(unlabelled) == names(source(animals))
    assert set(unlabelled.labels()) == {-1}


def test_a_description_of_unlabelled_images_opens_them_again_wherever_they_lie(animals, tmp_path):
    paint(tmp_path / "loose/x/a.jpg")
    data = splits.describe(SplitRequest("folder", "unlabelled", str(animals), {"path": str(tmp_path / "loose")}))
    again = splits.open_source(SplitRequest(data.dataset, data.split, root=data.root, options=data.options))
    assert (again.identity(), len(again)) == (data.identity, 1)
    assert data.options == {}


def test_the_minival_is_the_same_share_of_every_class_and_apart_from_train(animals):
    train, minival = (source(animals, split, minival_fraction=0.2) for split in ("train", "minival"))
    assert sorted(names(train) + names(minival)) == sorted(names(source(animals)))
    assert np.bincount(minival.labels()).tolist() == [4, 2]
    assert names(minival) == names(source(animals, "minival", minival_fraction=0.2))
    assert not set(names(minival)) & set(names(source(animals, "unlabelled", minival_fraction=0.2)))


def test_a_folder_minival_is_taken_as_it_is(animals):
    shutil.copytree(animals / "val", animals / "minival")
    assert len(source(animals, "minival", minival_fraction=0.2)) == 4
    assert len(source(animals, "train", minival_fraction=0.2)) == 30


def test_a_class_too_small_for_a_minival_is_named(animals):
    paint(animals / "train/bird/0.png")
    with pytest.raises(BenchError, match=r"bird: 1 image\(s\) are too few"):
        source(animals, "minival", minival_fraction=0.1)


@pytest.mark.parametrize(
    ("limit", "counts"), [(6, [3, 3]), (0.5, [8, 7]), (24, [14, 10]), (500, [20, 10]), (1.0, [20, 10])]
)
def test_a_limit_takes_a_balanced_part(animals, limit, counts):
    part = source(animals, limit=limit)
    assert sorted(np.bincount(part.labels()).tolist(), reverse=True) == counts
    assert names(part) == names(source(animals, limit=limit))
    assert [part[i]["label"] for i in range(len(part))] == list(part.labels())


def test_a_smaller_limit_is_a_part_of_a_larger_one(animals):
    assert set(names(source(animals, limit=6))) < set(names(source(animals, limit=12)))


def test_a_negative_limit_is_refused(animals):
    with pytest.raises(BenchError, match="limit = -3: give a count"):
        source(animals, limit=-3)


def test_a_description_says_how_many_images_and_which(animals):
    data = splits.describe(SplitRequest("folder", "train", str(animals), {"max_unreadable": 2}, limit=6))
    assert (data.images, data.limit, data.root) == (6, 6, str(animals))
    assert data.identity != splits.describe(SplitRequest("folder", "train", str(animals))).identity
    assert data.options == {}


@pytest.mark.parametrize(
    ("make", "split", "message"),
    [
        (lambda root: None, "train", "No such file or directory"),
        (lambda root: root.write_text("x"), "train", "Not a directory"),
        (lambda root: root.mkdir(), "train", "has no folder train; it has none"),
        (lambda root: paint(root / "train/a.jpg"), "train", "train has no class folders.*--unlabelled"),
        (lambda root: paint(root / "train/a/0.jpg"), "minival", "or set minival_fraction"),
        (lambda root: paint(root / "test/a/0.jpg"), "val", "has no folder val; it has test"),
        (lambda root: paint(root / "val/a/0.jpg"), "val", "train: No such file"),
        (lambda root: (root / "x").mkdir(parents=True), "unlabelled", "no images in it"),
    ],
)
def test_a_folder_that_is_not_laid_out_as_expected_says_what_is_missing(tmp_path, make, split, message):
    make(tmp_path / "data")
    with pytest.raises(BenchError, match=message):
        source(tmp_path / "data", split)


def test_no_folder_at_all_asks_for_one():
    with pytest.raises(BenchError, match="--data-dir PATH"):
        splits.open_source(SplitRequest("folder", "train"))


@pytest.fixture
def without_rights():
    """Whoever runs the tests is a user without special rights for a while."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


def test_a_folder_without_permission_says_so(animals, request):
    (animals / "train").chmod(0)
    request.getfixturevalue("without_rights")
    with pytest.raises(BenchError, match="Permission denied"):
        source(animals)


def test_a_circle_of_links_ends(animals):
    (animals / "train/cat/again").symlink_to(animals / "train/cat")
    assert len(source(animals)) == 30


def test_hidden_files_and_folders_are_passed_over(animals):
    (animals / "train/.ipynb_checkpoints").mkdir()
    (animals / "train/cat/._00.png").write_bytes(b"left by another system")
    assert len(source(animals)) == 30


def test_a_file_name_that_is_not_text_is_named(animals):
    shutil.copy(animals / "train/cat/00.png", os.fsencode(animals / "train/cat") + b"/\xff.png")
    with pytest.raises(BenchError, match="is not valid UTF-8"):
        source(animals)


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("foldr", {}, r"no data set 'foldr'.*Did you mean folder\?"),
        ("_pictures", {}, "no data set '_pictures'"),
        (
            "folder",
            {"max_unreadble": 1},
            r"no option of data set folder 'max_unreadble'.*Did you mean max_unreadable\?",
        ),
        ("folder", {"minival_fraction": 1.5}, "minival_fraction = 1.5"),
    ],
)
def test_unknown_names_and_options_offer_the_nearest(animals, dataset, options, message):
    with pytest.raises(BenchError, match=message):
        splits.open_source(SplitRequest(dataset, "train", root=str(animals), options=options))


def test_data_sets_are_the_files_of_the_folder():
    assert {"demo", "folder"} <= set(datasets_module.names())
    assert not any(name.startswith("_") for name in datasets_module.names())


def test_a_data_set_of_a_third_party_is_found_by_its_entry_point(tmp_path, monkeypatch):
    (tmp_path / "pets_source.py").write_text("def open_split(split, root=None):\n    return [split, root]\n")
    metadata = tmp_path / "pets-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: pets\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[bench.datasets]\npets = pets_source\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "pets" in datasets_module.names()
    assert splits.open_source(SplitRequest("pets", "train", root="here")) == ["train", "here"]
