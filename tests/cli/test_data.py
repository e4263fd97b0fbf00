"""bench data: what a task's data are, what is missing, and what is there twice."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bench.cli.app import app
from bench.data import duplicates
from bench.data.duplicates import Fingerprints, Pair, find_pairs, fingerprint

TASK = """
dataset = "folder"
image_size = 48
patch_size = 8
splits = { pretrain = "train", train = "train", val = "val" }

[expects.train]
images = 12
per_class = [6, 6]
names = "p{}"
"""


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A soft pattern of its own."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def animals(tmp_path_factory) -> Path:
    """Twelve images to learn from and eight to be scored on, of cats and dogs."""
    root = tmp_path_factory.mktemp("data") / "animals"
    for split, number in (("train", 12), ("val", 8)):
        for i in range(number):
            path = root / split / ("cat" if 2 * i < number else "dog") / f"p{i + 1}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(i + 100 * (split == "val")).save(path, quality=92)
    return root


@pytest.fixture
def copy(animals, tmp_path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(animals, tmp_path / "copy"))


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Runs `bench data ...` on the task pets."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/pets.toml").write_text(TASK)

    def run(command: str, root: Path, *options: str):
        where = ["--include", str(tmp_path / "tasks"), "--data-dir", str(root)]
        return CliRunner().invoke(app, ["data", command, "pets", *where, *options])

    return run


def test_complete_data_are_shown_with_their_root_hash(bench, animals):
    done = bench("check", animals)
    assert done.exit_code == 0, done.output
    train = next(line for line in done.output.splitlines() if line.startswith("pets/train"))
    for text in ("pretrain, train", "12 of 12", "64 x 48"):
        assert text in train
    splits = {split["name"]: split for split in json.loads(bench("check", animals, "--json").output)}
    assert splits["pets/train"]["root_hash"] in train
    assert splits["pets/val"]["per_class"] == [4, 4]
    assert splits["pets/val"]["ok"] is True
    assert done.output.splitlines()[-1] == "nothing is missing"


def test_a_half_copied_split_names_what_is_missing(bench, copy):
    (copy / "train/dog/p9.jpg").unlink()
    done = bench("check", copy)
    assert done.exit_code == 4
    assert "pets/train: 11 of 12 images" in done.output
    assert "pets/train: missing: p9" in done.output
    assert "classes with fewer than 6: dog (5)" in done.output


@pytest.mark.parametrize("decode", ["all", "2"])
def test_damaged_images_are_named(bench, copy, decode):
    for name in ("cat/p1", "dog/p6"):
        path = copy / f"val/{name}.jpg"
        path.write_bytes(path.read_bytes()[:500])
    done = bench("check", copy, "--decode", decode)
    assert done.exit_code == 4
    assert "pets/val: 2 images cannot be read" in done.output
    for name in ("cat/p1.jpg", "dog/p6.jpg"):
        assert f"  {name}: " in done.output
        assert "truncated" in done.output.lower()


def test_data_that_are_not_there_are_told_apart_from_data_that_are(bench, copy):
    shutil.rmtree(copy / "val")
    done = bench("check", copy)
    assert done.exit_code == 4
    assert "has no folder val" in done.output
    assert "12 of 12" in done.output


def test_a_number_of_images_that_is_none_is_refused(bench, animals):
    done = bench("check", animals, "--decode", "some")
    assert done.exit_code == 2
    assert "--decode some: write a number of images, or all" in done.output


def test_an_index_is_made_once(bench, animals, monkeypatch):
    rows = json.loads(bench("index", animals, "--json").output)
    assert [(row["split"], row["files"]) for row in rows] == [("pets/train", 12), ("pets/val", 8)]
    monkeypatch.setattr("bench.data.manifest.hash_piece", lambda piece: pytest.fail("read a second time"))
    again = bench("index", animals)
    assert again.exit_code == 0
    assert all(row["root hash"] in again.output for row in rows)


def test_the_files_of_two_copies_can_be_compared(bench, animals, copy, tmp_path):
    whole = copy / "train/dog/p9.jpg"
    whole.write_bytes(whole.read_bytes() + b"more")
    for number, root in enumerate((animals, copy)):
        assert bench("index", root, "--write", str(tmp_path / f"list{number}")).exit_code == 0
    first, second = ((tmp_path / f"list{n}/pets-train.tsv").read_text().splitlines() for n in (0, 1))
    (differing,) = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    assert all(line.endswith("\tdog/p9.jpg") for line in differing)
    assert len(first) == 12


def test_separate_images_are_no_leak(bench, animals):
    done = bench("leaks", animals)
    assert (done.exit_code, done.output) == (0, "no duplicate images\n")


def test_an_image_that_is_also_learnt_from_is_found_and_named(bench, copy):
    shutil.copy(copy / "train/cat/p1.jpg", copy / "val/cat/again.jpg")
    Image.open(copy / "train/dog/p8.jpg").resize((40, 30)).save(copy / "val/dog/small.png")
    shutil.copy(copy / "val/dog/p5.jpg", copy / "val/dog/twin.jpg")
    done = bench("leaks", copy, "--json")
    assert done.exit_code == 3
    assert [(row["what"], row["picture"], row["scored picture"]) for row in json.loads(done.output)] == [
        ("same pixels", "pets/train: cat/p1.jpg", "pets/val: cat/again.jpg"),
        ("nearly the same", "pets/train: dog/p8.jpg", "pets/val: dog/small.png"),
        ("same pixels", "pets/val: dog/p5.jpg", "pets/val: dog/twin.jpg"),
    ]
    assert "3 pairs: 2 with the same pixels, 1 nearly the same" in bench("leaks", copy).output


def test_scored_images_are_found_among_the_data_of_another_task(bench, copy, animals, tmp_path):
    (tmp_path / "tasks/web.toml").write_text(TASK)
    shutil.copy(copy / "val/cat/p2.jpg", copy / "train/dog/from-the-web.jpg")
    done = bench("leaks", animals, "--against", "web", "--data-dir", f"web={copy}", "--json")
    assert done.exit_code == 3
    leaks = {(row["picture"], row["scored picture"]) for row in json.loads(done.output)}
    assert ("web/train: dog/from-the-web.jpg", "pets/val: cat/p2.jpg") in leaks
    assert ("web/val: cat/p1.jpg", "pets/val: cat/p1.jpg") in leaks  # a copy holds all of them


def test_images_looked_at_before_are_not_decoded_again(bench, animals, monkeypatch):
    bench("leaks", animals)
    monkeypatch.setattr(duplicates, "fingerprint", lambda picture: pytest.fail("decoded a second time"))
    assert bench("leaks", animals).exit_code == 0


def fingerprints_of(images: list[Image.Image]) -> Fingerprints:
    return Fingerprints(*(np.stack(column) for column in zip(*map(fingerprint, images), strict=True)))


def test_scaled_and_encoded_images_look_the_same_and_others_do_not(tmp_path):
    changed = []
    for seed in range(20):
        picture(seed).resize((50, 40)).save(tmp_path / "p.jpg", quality=50)
        changed.append(Image.open(tmp_path / "p.jpg").convert("RGB"))
    same = find_pairs(fingerprints_of([picture(seed) for seed in range(20)]), fingerprints_of(changed), 6)
    assert {(pair.left, pair.right, pair.exact) for pair in same} == {(i, i, False) for i in range(20)}


def test_the_search_finds_what_a_search_through_all_pairs_finds():
    rng = np.random.default_rng(0)
    left = rng.integers(0, 2**63, 300, dtype=np.uint64)
    flips = [sum(1 << int(bit) for bit in rng.choice(64, rng.integers(0, 12), replace=False)) for _ in left]
    right = left[::-1] ^ np.array(flips, np.uint64)

    def made(hashes, first):
        numbers = np.arange(first, first + len(hashes), dtype=np.uint64)
        return Fingerprints(
            np.tile(numbers.view(np.uint8).reshape(-1, 8), 2), hashes, np.zeros((len(hashes), 256), np.uint8)
        )

    for bits in (0, 3, 6):
        near = {(pair.left, pair.right, pair.bits) for pair in find_pairs(made(left, 0), made(right, 1000), bits)}
        apart = [[int(a ^ b).bit_count() for b in right] for a in left]
        assert near == {(i, j, apart[i][j]) for i in range(300) for j in range(300) if apart[i][j] <= bits}


def test_plain_images_of_different_grey_are_not_the_same():
    plain = fingerprints_of([Image.new("RGB", (20, 20), (grey,) * 3) for grey in (0, 100, 103)])
    assert find_pairs(plain, None, 6) == [Pair(1, 2, False, 0)]
