"""ImageNet's other test sets are read with the class numbers of ImageNet-1k, and scored by their own rules."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from layouts import jpeg, write

from bench.config.precedence import UserOverrides
from bench.config.schema import Arm, Protocol, Study
from bench.config.stage import Data
from bench.data import splits
from bench.data.datasets.suites import ranks, synsets
from bench.data.splits import SplitRequest
from bench.errors import BenchError
from bench.evaluation.loop import EvalSplit, evaluate
from bench.evaluation.predictions import write_predictions
from bench.evaluation.scorers import Classification, LabelSets, classifier, sanity_check
from bench.launch.distributed import connect
from bench.launch.settings import Settings
from bench.methods.objective import Objective
from bench.pipeline.transforms import eval_view
from bench.planning.planner import plan_with_history
from bench.planning.request import DataProbe, Request

INFO = Path(timm.__file__).parent / "data/_info"
TASKS = Path(__file__).parents[2] / "tasks"


@pytest.fixture(scope="module")
def picture() -> bytes:
    return jpeg(0, (8, 8))


@pytest.fixture(scope="module")
def suites(tmp_path_factory, picture) -> Path:
    """ImageNet-V2, A and R with one image of each class, as their archives are unpacked."""
    root = tmp_path_factory.mktemp("suites")
    for number in range(1000):
        write(root / f"imagenetv2-matched-frequency-format-val/{number}/{number:04x}.jpeg", picture)
    for suite in ("imagenet-a", "imagenet-r"):
        for name in (INFO / f"{suite.replace('-', '_')}_synsets.txt").read_text().split():
            write(root / suite / name / "0.5_art.x _ y.jpg", picture)
    return root


def opened(suite: str, root: Path, **options):
    return splits.open_source(SplitRequest("suites", "val", root=str(root), options={"suite": suite, **options}))


def test_the_folders_of_v2_are_numbers_and_are_sorted_as_numbers(suites):
    source = opened("imagenet-v2", suites)
    assert list(source.labels()) == list(range(1000))
    assert [source.name(index).split("/")[0] for index in (1, 2, 10, 100)] == ["1", "2", "10", "100"]
    assert source[10]["label"] == 10
    assert source.classes[10] == "n01530575"  # brambling


def test_a_folder_of_v2_too_few_or_too_many_is_named(tmp_path, picture):
    for number in range(1000):
        if number != 7:
            write(tmp_path / f"{number}/0.jpeg", picture)
    (tmp_path / "1000").mkdir()
    with pytest.raises(BenchError, match="lacks the class folders 7 and has 1000, which are none"):
        opened("imagenet-v2", tmp_path)


def test_another_set_of_v2_is_refused(tmp_path):
    (tmp_path / "imagenetv2-threshold0.7-format-val/0").mkdir(parents=True)
    with pytest.raises(BenchError, match="matched-frequency"):
        opened("imagenet-v2", tmp_path / "imagenetv2-threshold0.7-format-val")


@pytest.mark.parametrize("suite", ["imagenet-a", "imagenet-r"])
def test_labels_of_a_and_r_are_those_of_the_1000_classes(suites, suite):
    theirs = [int(line) for line in (INFO / f"{suite.replace('-', '_')}_indices.txt").read_text().split()]
    source = opened(suite, suites)
    assert list(source.labels()) == list(source.among) == theirs
    assert [source.classes[label] for label in source.labels()] == [
        source.name(index).split("/")[0] for index in range(len(source))
    ]


def test_a_class_of_a_suite_that_is_missing_is_named(suites, tmp_path, picture):
    for name in (INFO / "imagenet_a_synsets.txt").read_text().split()[1:]:
        write(tmp_path / name / "0.jpg", picture)
    with pytest.raises(BenchError, match="it lacks 1: n01498041"):
        opened("imagenet-a", tmp_path)


def test_a_suite_that_is_not_there_says_what_is_needed(tmp_path):
    with pytest.raises(BenchError, match="no imagenet-r; it should have folders called WordNet ids"):
        opened("imagenet-r", tmp_path)
    with pytest.raises(BenchError, match="Did you mean imagenet-r"):
        opened("imagenet_r", tmp_path)
    with pytest.raises(BenchError, match="for evaluation only and has val"):
        splits.open_source(SplitRequest("suites", "train", root=str(tmp_path), options={"suite": "imagenet-r"}))


@pytest.fixture(scope="module")
def val(tmp_path_factory, picture) -> Path:
    """ImageNet's val with an image of each class, the number of an image being that of its class."""
    root = tmp_path_factory.mktemp("imagenet")
    for number, name in enumerate(synsets()):
        write(root / f"val/{name}/ILSVRC2012_val_{number + 1:08d}.JPEG", picture)
    return root


def real(val: Path, folder: Path, sets: list[list[int]]):
    path = folder / "real.json"
    path.write_text(json.dumps(sets))
    return opened("imagenet-real", val, label_sets=str(path))


def test_real_leaves_out_images_without_a_label_and_keeps_every_other_label(val, tmp_path):
    sets = [[], [970, 795], [2], *[[number, 5, 6] for number in range(3, 1000)]]
    source = real(val, tmp_path, sets)
    assert len(source) == 999
    assert source.name(0) == "ILSVRC2012_val_00000002"
    assert source[0]["label"] == source.labels()[0] == 970
    assert source.label_sets()[:3].tolist() == [[970, 795, -1], [2, -1, -1], [3, 5, 6]]


def test_real_is_known_by_its_labels(val, tmp_path):
    sets = [[number] for number in range(1000)]
    before = real(val, tmp_path, sets).identity()
    assert real(val, tmp_path, sets).identity() == before
    assert real(val, tmp_path, [*sets[:-1], [0]]).identity() != before


def test_the_labels_of_real_that_timm_ships_are_the_published_ones():
    sets = json.loads((INFO / "imagenet_real_labels.json").read_text())
    assert len(sets) == 50_000
    assert sum(map(bool, sets)) == 46_837


@pytest.mark.parametrize(
    ("sets", "message"),
    [([[0]] * 999, "has no number"), ([[1000]] * 1000, "image 1 has the label 1000"), ({"a": 1}, "a list of lists")],
)
def test_labels_of_real_that_do_not_fit_are_refused(val, tmp_path, sets, message):
    with pytest.raises(BenchError, match=message):
        real(val, tmp_path, sets)


def test_a_part_of_a_suite_is_scored_by_the_same_rule(suites, val, tmp_path):
    options = {"suite": "imagenet-a"}
    part = splits.open_source(SplitRequest("suites", "val", root=str(suites), options=options, limit=20))
    assert part.among == ranks("imagenet-a")
    (tmp_path / "real.json").write_text(json.dumps([[number, 3] for number in range(1000)]))
    options = {"suite": "imagenet-real", "label_sets": str(tmp_path / "real.json")}
    part = splits.open_source(SplitRequest("suites", "val", root=str(val), options=options, limit=20))
    assert part.label_sets().tolist() == [[part[index]["label"], 3] for index in range(20)]


# Scoring: K = 6 classes.
AMONG = Classification(6, among=(1, 2, 5))
SETS = np.array([[0, -1, -1], [1, 2, 5], [3, 4, -1], [5, 0, -1]])


def batch(labels: list[int]) -> dict[str, torch.Tensor]:
    return {"label": torch.tensor(labels), "index": torch.arange(len(labels))}


def test_a_perfect_predictor_scores_100_and_one_that_is_off_by_one_0():
    sanity_check(AMONG, batch([1, 2, 5, 5]))
    sanity_check(LabelSets(6, SETS), batch([0, 1, 3, 5]))


def test_classes_that_may_not_be_answered_never_win():
    logits = torch.tensor([[9.0, 2, 1, 9, 9, 0], [9.0, 0, 1, 9, 9, 2]])
    rows = AMONG.rows({"logits": logits, "other": -logits}, batch([1, 2]))
    assert rows["top5"][:, :3].tolist() == [[1, 2, 5], [5, 2, 1]]
    assert rows["prediction_other"].tolist() == [5, 1]
    assert rows["logits"].tolist() == logits.tolist()  # as the model gave them
    sliced = torch.nn.functional.cross_entropy(logits[:, [1, 2, 5]], torch.tensor([0, 1]), reduction="none")
    assert rows["loss"] == pytest.approx(sliced.numpy())
    assert AMONG.summary(rows)["top1"] == 50


def test_a_label_that_may_not_be_answered_is_named():
    with pytest.raises(BenchError, match="image 1 has the label 3, 3 classes may be predicted"):
        AMONG.rows({"logits": torch.zeros(2, 6)}, batch([1, 3]))


def test_any_label_of_a_set_is_right():
    answers = torch.nn.functional.one_hot(torch.tensor([0, 5, 0, 4]), 6).float()
    scorer = LabelSets(6, SETS)
    rows = scorer.rows({"logits": answers}, batch([0, 1, 3, 5]))
    assert scorer.summary(rows)["top1"] == 50
    assert rows["label_set"].tolist() == SETS.tolist()
    probabilities = answers.softmax(1)
    expected = [-np.log(sum(probabilities[i, k].item() for k in SETS[i] if k >= 0)) for i in range(4)]
    assert rows["loss"] == pytest.approx(np.array(expected), rel=1e-5)


def test_the_sets_of_a_batch_are_found_by_the_numbers_of_its_images():
    scorer = LabelSets(6, SETS)
    rows = scorer.rows({"logits": torch.eye(6)[[4]]}, {"label": torch.tensor([3]), "index": torch.tensor([2])})
    assert scorer.summary(rows)["top1"] == 100


def test_the_protocol_decides_how_a_suite_is_scored(suites):
    source = opened("imagenet-a", suites)
    assert classifier(1000, Protocol(among="split"), source).among.tolist() == list(ranks("imagenet-a"))
    assert len(classifier(1000, Protocol(), source).among) == 1000


class Stubborn(Objective):
    """Prefers class 0, then class `second`, whatever it sees."""

    def __init__(self, second: int) -> None:
        super().__init__()
        self.second = second

    def predict(self, batch):
        logits = torch.zeros(len(batch["image"]), 1000)
        logits[:, 0], logits[:, self.second] = 9.0, 8.0
        return {"logits": logits}


def scored(objective, source, folder: Path, **rules):
    protocol = Protocol(resolution=8, crop_ratio=1.0, **rules)
    split = EvalSplit(source, eval_view(protocol), classifier(1000, protocol, source), protocol, window=8)
    scores = evaluate(objective, split, connect(Settings()))
    write_predictions(folder / "predictions.parquet", scores, source)
    return scores.metrics, pd.read_parquet(folder / "predictions.parquet")


def test_a_suite_goes_through_the_evaluation(suites, tmp_path):
    source = opened("imagenet-a", suites)
    metrics, frame = scored(Stubborn(source.among[7]), source, tmp_path, among="split")
    assert metrics["top1"] == 100 / 200  # class 0 is none of its 200
    assert frame["prediction"].unique().tolist() == [source.among[7]]
    assert frame["correct"].sum() == 1


def test_real_goes_through_the_evaluation(val, tmp_path):
    source = real(val, tmp_path, [[], *[[number, 0] for number in range(1, 600)], *[[600]] * 400])
    metrics, frame = scored(Stubborn(5), source, tmp_path, right="label-set")
    assert metrics["top1"] == pytest.approx(100 * 599 / 999)
    assert frame["correct"].sum() == 599
    assert frame["label_set"].iloc[0].tolist() == [1, 0]


# Planning: a task that only scores the models of another.
def planned(task: str, seen: dict | None = None, **sets):
    def describe(request: SplitRequest) -> Data:
        (seen if seen is not None else {})[request.dataset] = request.root
        return Data(dataset=request.dataset, split=request.split, identity=str(request.options), images=10**6)

    roots = {"imagenet1k": "/data/imagenet"}
    study = Study(name="s", arms=(Arm(method="deit", size="tiny"),), tasks=(task,))
    request = Request(study=study, places=(TASKS,), roots=roots, overrides=UserOverrides(sets=sets))
    return plan_with_history(request, DataProbe(describe, lambda _: 1000)).plan


def test_a_suite_scores_the_model_of_imagenet_and_trains_none_of_its_own():
    own, suite = planned("imagenet1k"), planned("imagenet-a")
    trained = {key for key, stage in own.stages.items() if stage.kind != "evaluate"}
    assert trained == {key for key, stage in suite.stages.items() if stage.kind != "evaluate"}
    (evaluation,) = [stage for stage in suite.stages.values() if stage.kind == "evaluate"]
    assert evaluation.task == "imagenet-a"
    assert list(evaluation.data) == ["val"]
    assert evaluation.data["val"].dataset == "suites"


def test_a_suite_is_scored_as_its_task_is_but_for_what_it_says():
    (own,) = [stage for stage in planned("imagenet1k").stages.values() if stage.kind == "evaluate"]
    (suite,) = [stage for stage in planned("imagenet-a").stages.values() if stage.kind == "evaluate"]
    assert suite.protocol == own.protocol.model_copy(update={"among": "split"})


def test_real_lies_where_imagenet_lies():
    seen: dict = {}
    planned("imagenet-real", seen)
    assert seen["suites"] == "/data/imagenet"


def test_a_suite_refuses_models_that_take_other_images_or_classes(tmp_path):
    text = (TASKS / "imagenet-a.toml").read_text()
    (tmp_path / "small.toml").write_text(text.replace("[protocol]", "[protocol]\nresolution = 160"))
    (tmp_path / "other.toml").write_text(text.replace("classes = 1000", "classes = 10"))
    for name, message in (("small", "scores at 160 pixels"), ("other", "has 10 classes, but .* have 1000")):
        study = Study(name="s", arms=(Arm(method="vit"),), tasks=(name,))
        probe = DataProbe(lambda _: Data(dataset="x", split="val", identity="x", images=10**6), lambda _: 1000)
        with pytest.raises(BenchError, match=message):
            plan_with_history(Request(study=study, places=(TASKS, tmp_path)), probe)
