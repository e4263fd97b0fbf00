"""CIFAR is the same images in each version, pickles are refused, and a file that is not whole is named."""

import pickle

import layouts
import numpy as np
import pyarrow.parquet as pq
import pytest
from layouts import CIFAR, cifar_binary, cifar_class, write

from bench.data import splits
from bench.data.splits import SplitRequest
from bench.errors import BenchError


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """CIFAR-100 and CIFAR-10 in each layout."""
    return {
        (layout, classes): make(tmp_path_factory.mktemp(f"{layout}{classes}"), classes)
        for layout, make in CIFAR.items()
        for classes in (100, 10)
    }


def source(root, split="train", classes=100, **options):
    return splits.open_source(SplitRequest("cifar", split, root=str(root), options={"classes": classes, **options}))


@pytest.mark.parametrize("classes", [100, 10])
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("layout", CIFAR)
def test_every_image_has_the_pixels_and_the_fine_label_it_was_written_with(made, layout, split, classes):
    data = source(made[layout, classes], split, classes)
    written = layouts.cifar_pictures("test" if split == "val" else split, classes)
    if layout == "folders":  # in the order of the classes
        written = sorted(written, key=lambda record: record[0])
    assert list(data.labels()) == [label for label, _ in written]
    assert list(data.classes) == [cifar_class(label) for label in range(classes)]
    for index, (label, pixels) in enumerate(written):
        assert data[index]["label"] == label
        assert np.array_equal(data[index]["image"], pixels)


def test_images_have_the_same_names_in_the_binary_version_and_in_parquet(made):
    first, second = (source(made[layout, 100]) for layout in ("binary", "parquet"))
    assert [first.name(i) for i in range(len(first))] == [second.name(i) for i in range(len(second))]
    assert first.name(7) == "train/00007"


@pytest.mark.parametrize("layout", CIFAR)
def test_each_version_says_which_bytes_it_is_made_of(made, layout):
    data = source(made[layout, 100])
    assert len(data.files()) == len(data) == 200
    assert splits.root_of(data) != splits.root_of(source(made[layout, 100], "val"))


def test_the_folder_of_the_binary_version_may_be_given_itself(made):
    root = made["binary", 100]
    assert source(root / "cifar-100-binary").identity() == source(root).identity()


@pytest.mark.parametrize("layout", CIFAR)
def test_the_minival_is_apart_from_train_and_holds_some_of_each_class(made, layout):
    train, minival = (source(made[layout, 100], split, minival_fraction=0.5) for split in ("train", "minival"))
    assert np.bincount(minival.labels()).tolist() == np.bincount(train.labels()).tolist() == [1] * 100
    assert not {minival.name(i) for i in range(100)} & {train.name(i) for i in range(100)}


class Trap:
    """A pickle that writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(("folder", "classes"), [("cifar-100-python", 100), ("cifar-10-batches-py", 10)])
def test_pickles_are_refused_unread_with_the_download_that_works(tmp_path, folder, classes):
    for name in ("train", "test", "data_batch_1"):
        write(tmp_path / folder / name, pickle.dumps(Trap(tmp_path / "sprung")))
    for root in (tmp_path, tmp_path / folder):
        with pytest.raises(BenchError, match=rf"made of pickles.*kriz/cifar-{classes}-binary.tar.gz"):
            source(root, classes=classes)
    assert not (tmp_path / "sprung").exists()


def test_a_file_cut_short_is_named(tmp_path):
    path = cifar_binary(tmp_path) / "cifar-100-binary/train.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        BenchError, match=r"train.bin has 614,799 bytes, which is not a whole number of records of 3,074"
    ):
        source(tmp_path)


def test_a_batch_that_is_missing_is_named(tmp_path):
    (cifar_binary(tmp_path, 10) / "cifar-10-batches-bin/data_batch_3.bin").unlink()
    with pytest.raises(BenchError, match=r"lacks data_batch_3.bin of CIFAR-10"):
        source(tmp_path, classes=10)


def test_a_label_that_there_is_not_is_named(tmp_path):
    path = cifar_binary(tmp_path) / "cifar-100-binary/test.bin"
    data = bytearray(path.read_bytes())
    data[5 * 3074 + 1] = 100
    path.write_bytes(data)
    with pytest.raises(BenchError, match=r"test.bin: image 5 has the label 100; CIFAR-100 has 0 to 99"):
        source(tmp_path, "val")


def test_the_other_cifar_is_not_taken_for_this_one(made, tmp_path):
    with pytest.raises(BenchError, match="holds CIFAR-10, but the task needs CIFAR-100"):
        source(made["binary", 10])
    with pytest.raises(BenchError, match=r"the columns are img, label; CIFAR-100 has img and fine_label|10 classes in"):
        source(made["parquet", 10])
    with pytest.raises(BenchError, match="train has 10 class folders, but CIFAR-100 has 100"):
        source(made["folders", 10])
    with pytest.raises(BenchError, match="classes = 20: CIFAR has 10 or 100"):
        source(tmp_path, classes=20)


def test_columns_of_something_else_are_told(tmp_path):
    pq.write_table(layouts.table([{"pixels": 1, "label": 2}], {}), tmp_path / "train.parquet")
    with pytest.raises(BenchError, match="the columns are pixels, label; CIFAR-100 has img and fine_label"):
        source(tmp_path)


def test_nothing_at_all_says_what_is_read(tmp_path):
    with pytest.raises(BenchError, match="No such file"):
        source(tmp_path / "nowhere")
    with pytest.raises(BenchError, match=r"no train of CIFAR-100. What is read: cifar-100-binary/ \(https"):
        source(tmp_path)
    with pytest.raises(BenchError, match="give --data-dir PATH"):
        splits.open_source(SplitRequest("cifar", "train"))
    with pytest.raises(BenchError, match=r"no split of CIFAR 'trian'.*Did you mean train\?"):
        source(tmp_path, "trian")
