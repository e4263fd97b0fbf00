"""Parts of a split are the same on every machine, alike in their classes, and only of what may be learnt from."""

from collections import Counter
from pathlib import Path

import pytest

from bench.config.schema import Arm, Study
from bench.config.stage import Data, digest
from bench.data import splits
from bench.data.manifest import Piece
from bench.data.splits import SplitRequest
from bench.data.subsets import labelled_subset, limited_subset
from bench.errors import BenchError
from bench.planning.planner import plan_with_history
from bench.planning.request import DataProbe, Request


class Letters:
    """100 images of 10 classes, ten each, in folders."""

    dataset, split, root = "letters", "train", None
    classes = tuple("abcdefghij")

    def __len__(self):
        return 100

    def __getitem__(self, index):
        return {"image": index, "label": index // 10}

    def name(self, index):
        return f"{self.classes[index // 10]}/{self.classes[index // 10]}_{index}.JPEG"

    def labels(self):
        return [index // 10 for index in range(100)]

    def identity(self):
        return "letters"

    def files(self):
        pictures = [Piece(self.name(index), self.name(index), 1, 0, image=index) for index in range(100)]
        return [*pictures, Piece("table.csv", "table.csv", 1, 0)]


def names(part) -> list[str]:
    return [part.name(index) for index in range(len(part))]


@pytest.mark.parametrize(("rule", "each"), [("10%", 1), ("35%", 3), ("2 per class", 2), ("100%", 10), ("12.5 %", 1)])
def test_classes_are_represented_alike(rule, each):
    images_of = Counter(labelled_subset(Letters(), rule).labels())
    assert len(images_of) == 10
    assert set(images_of.values()) <= {each, each + 1}
    assert min(images_of.values()) == each


def test_a_share_is_rounded_down_as_in_the_published_lists():
    assert len(labelled_subset(Letters(), "35.9%")) == 35  # 1 % of ImageNet's 1,281,167 are 12,811


def test_the_part_of_seed_0_is_this_one_for_ever():
    assert digest(names(labelled_subset(Letters(), "1 per class"))) == "dca13b71de8671f61df66965"


def test_another_seed_is_another_part_and_another_identity():
    first, second = labelled_subset(Letters(), "3 per class"), labelled_subset(Letters(), "3 per class seed 1")
    assert names(first) != names(second)
    assert first.identity() != second.identity()
    assert names(labelled_subset(Letters(), "3 per class seed 1")) == names(second)


def test_a_smaller_share_lies_within_a_larger_one():
    assert set(names(labelled_subset(Letters(), "10%"))) < set(names(labelled_subset(Letters(), "30%")))


def test_a_sample_keeps_its_name_label_and_file():
    part = labelled_subset(Letters(), "10%")
    for index in range(len(part)):
        image = part[index]["image"]
        assert part.name(index) == Letters().name(image)
        assert part[index]["label"] == part.labels()[index] == image // 10
    pictures = [piece for piece in part.files() if piece.image >= 0]
    assert [piece.id for piece in pictures] == names(part)
    assert [piece.image for piece in pictures] == list(range(10))
    assert part.files()[-1].id == "table.csv"


def list_file(tmp_path: Path, *lines: str) -> str:
    (tmp_path / "names.txt").write_text("\n".join(lines))
    return f"list:{tmp_path / 'names.txt'}"


def test_a_list_takes_the_images_it_names_in_any_spelling(tmp_path):
    rule = list_file(tmp_path, "# published", "b/b_12.JPEG", "a_3.JPEG", "", "j_99")
    part = labelled_subset(Letters(), rule)
    assert names(part) == ["a/a_3.JPEG", "b/b_12.JPEG", "j/j_99.JPEG"]
    (tmp_path / "elsewhere").mkdir()
    again = labelled_subset(Letters(), list_file(tmp_path / "elsewhere", "j_99.JPEG", "b_12.png", "a_3"))
    assert again.identity() == part.identity()


class Alike(Letters):
    """Folders that hold files of the same names."""

    def name(self, index):
        return f"{self.classes[index // 10]}/{index % 10}.png"


@pytest.mark.parametrize(
    ("source", "lines", "message"),
    [
        (Letters(), ["a_3", "a_300", "b_400"], "2 of 3 names are not in letters/train: a_300, b_400"),
        (Letters(), ["a_3", "a/a_3.JPEG"], "2 of 2 names are duplicates: a_3, a/a_3.JPEG"),
        (Alike(), ["3.png"], "1 of 1 names are the name of several images"),
        (Letters(), [], "no names in it"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path, source, lines, message):
    with pytest.raises(BenchError, match=message):
        labelled_subset(source, list_file(tmp_path, *lines))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("one percent", "write '1%', '10% seed 1'"),
        ("0%", "write '1%'"),
        ("101%", "write '1%'"),
        ("0 per class", "write '1%'"),
        ("5%", "5 of 100 images are fewer than 10 classes"),
        ("11 per class", r"has fewer images of a \(10\), b \(10\), c \(10\), d \(10\), e \(10\) and 5 more"),
        ("list:/nowhere/names.txt", "No such file"),
    ],
)
def test_a_rule_that_cannot_be_met_says_why(rule, message):
    with pytest.raises(BenchError, match=message):
        labelled_subset(Letters(), rule)


def test_a_limit_takes_a_count_or_a_share():
    assert len(limited_subset(Letters(), 20)) == len(limited_subset(Letters(), 0.2)) == 20
    with pytest.raises(BenchError, match="limit = -1"):
        limited_subset(Letters(), -1)


def test_labels_and_limit_go_together():
    part = splits.open_source(SplitRequest("demo", "train", labels="20 per class", limit=50))
    assert Counter(part.labels()) == dict.fromkeys(range(10), 5)


def test_only_what_learns_from_labels_sees_fewer_of_them():
    asked = {}

    def describe(request: SplitRequest) -> Data:
        asked[request.split] = request.labels
        name = request.split
        return Data(dataset=request.dataset, split=name, identity=name, images=500, labels=request.labels)

    study = Study(name="few", arms=(Arm(method="beit", size="nano"),), tasks=("demo",))
    places = (Path(__file__).parents[2] / "tasks",)
    request = Request(study=study, places=places, labels="5 per class", limit=None)
    plan = plan_with_history(request, DataProbe(describe, lambda _: 10)).plan
    assert asked == {"pretrain": "", "train": "5 per class", "val": "", "minival": ""}
    learnt = {stage.kind: stage.data["train"].labels for stage in plan.stages.values() if "train" in stage.data}
    assert learnt == {"tokenizer": "", "pretrain": "", "finetune": "5 per class"}


def test_where_a_list_lies_is_no_part_of_what_it_says():
    from bench.config.stage import _content

    here, there = (
        Data(dataset="d", split="train", identity="x", images=1, labels=f"list:{path}").model_dump() for path in "ab"
    )
    assert _content(here) == _content(there)
