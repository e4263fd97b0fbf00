"""The evaluation loop: every image once, the metric tried before it is believed, predictions as rows."""

import numpy as np
import pandas as pd
import pytest
import torch
from toys import CLASSES, Numbers, Toy, plain

from bench.devices import connect
from bench.evaluate import Split, evaluate, gather, per_class, predict, write_predictions
from bench.metrics import areas, overlap, total
from bench.objective import Objective
from bench.scoring import Classification, Segmentation, check
from bench.settings import Settings
from bench.spec import BenchError, Protocol

PROTOCOL = Protocol(resolution=4)


@pytest.fixture(scope="module")
def accelerator():
    return connect(Settings())


def split_of(source, scorer=None, **changes) -> Split:
    return Split(source, plain, scorer or Classification(CLASSES), PROTOCOL, window=4, batch_size=5)._replace(**changes)


class Maps(Numbers):
    """Pictures with label maps of another size, different from picture to picture."""

    classes = ("sky", "sea", "sand")

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        labels = torch.randint(0, 3, (6 + index % 3, 8), generator=generator, dtype=torch.uint8)
        labels[0, 0] = 255
        return {"image": self.pixels[index], "map": labels}


class WideMaps(Maps):
    """Pictures larger than the network's input, of several sizes."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 5 + index % 2, 9), generator=generator, dtype=torch.uint8)
        return {**sample, "image": image}


class Brightest(Objective):
    """Logits of a pixel are its three channels."""

    def predict(self, batch):
        return {"logits": batch["image"]}


def test_scores_equal_a_loop_over_images(accelerator):
    toy, numbers = Toy(), Numbers(23)
    scores = evaluate(toy, split_of(numbers), accelerator)
    right = 0
    for index in range(23):
        image = (numbers[index]["image"] / 255 - torch.tensor(PROTOCOL.mean)[:, None, None]) / torch.tensor(
            PROTOCOL.std
        )[:, None, None]
        answer = toy.predict({"image": image[None]})["logits"].argmax()
        right += int(answer == numbers[index]["label"])
    assert scores.metrics["top1"] == pytest.approx(100 * right / 23)
    assert scores.metrics["top5"] == 100
    assert scores.table["index"].tolist() == list(range(23))


def test_other_heads_are_scored_apart(accelerator):
    class TwoHeads(Toy):
        def predict(self, batch):
            logits = super().predict(batch)["logits"]
            return {"logits": logits, "always_red": torch.eye(3)[0].expand(len(logits), 3)}

    numbers = Numbers(20)
    scores = evaluate(TwoHeads(), split_of(numbers), accelerator)
    red = np.mean([numbers[index]["label"] == 0 for index in range(20)])
    assert scores.metrics["top1_always_red"] == pytest.approx(100 * red)


def test_the_batch_size_and_workers_change_nothing(accelerator):
    toy = Toy()
    first = evaluate(toy, split_of(Numbers(23)), accelerator)
    for changes in ({"batch_size": 7}, {"workers": 2}):
        other = evaluate(toy, split_of(Numbers(23), **changes), accelerator)
        assert other.metrics == pytest.approx(first.metrics)


def test_the_objective_is_left_in_the_mode_it_was_in(accelerator):
    toy = Toy(dropout=0.5).train()
    evaluate(toy, split_of(Numbers(8)), accelerator)
    assert toy.training
    assert toy.norm.num_batches_tracked == 0


def test_an_image_scored_twice_or_not_at_all_is_noticed():
    for indices in ([0, 1, 1], [0, 2], [0, 1, 2, 3]):
        tables = [{"index": np.array(indices)}]
        with pytest.raises(AssertionError, match="exactly once"):
            gather(tables, 3)


def test_a_label_the_model_does_not_know_is_named(accelerator):
    class Strange(Numbers):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"label": 7 if index == 6 else 0}

    with pytest.raises(BenchError, match="image 6 has the label 7, the model knows 0 to 2"):
        evaluate(Toy(), split_of(Strange(10)), accelerator)


def test_a_metric_that_misjudges_known_answers_is_not_believed():
    class Shifted(Classification):
        def summary(self, table):
            return super().summary({**table, "label": table["label"] + 1})

    batch = {"label": torch.tensor([0, 1, 2]), "index": torch.arange(3)}
    check(Classification(3), batch)
    with pytest.raises(AssertionError, match=r"label \+ 0 is 0\.0, not 100"):
        check(Shifted(3), batch)


@pytest.mark.parametrize("ignore", [255, 0])
def test_the_segmentation_metric_passes_its_own_check(ignore):
    batch = {"map": [Maps()[index]["map"] for index in range(4)], "index": torch.arange(4)}
    if ignore == 0:
        batch["map"] = [torch.where(labels == 255, 0, labels).to(torch.uint8) for labels in batch["map"]]
    check(Segmentation(3, ignore), batch)


def test_maps_are_scored_at_their_own_size(accelerator):
    maps = Maps(11)
    scores = evaluate(Brightest(), split_of(maps, Segmentation(3, 255)), accelerator)
    parts = []
    for index in range(11):
        image, labels = maps[index]["image"] / 255, maps[index]["map"]
        image = (image - torch.tensor(PROTOCOL.mean)[:, None, None]) / torch.tensor(PROTOCOL.std)[:, None, None]
        large = torch.nn.functional.interpolate(image[None], labels.shape, mode="bilinear")[0]
        parts.append(areas(large.argmax(0), labels, 3, 255))
    expected = overlap(total(parts))
    assert scores.metrics == pytest.approx({"mIoU": expected.mIoU, "mAcc": expected.mAcc, "aAcc": expected.aAcc})
    named = per_class(split_of(maps, Segmentation(3, 255)), scores)
    assert named == pytest.approx(dict(zip(maps.classes, expected.iou, strict=True)))


def test_large_pictures_of_several_sizes_are_seen_through_windows(accelerator):
    batch = {"image": [WideMaps()[index]["image"] for index in range(3)]}
    outputs = predict(Brightest(), batch, split_of(WideMaps()), accelerator.device)
    for image, logits in zip(batch["image"], outputs["logits"], strict=True):
        expected = (image / 255 - torch.tensor(PROTOCOL.mean)[:, None, None]) / torch.tensor(PROTOCOL.std)[
            :, None, None
        ]
        assert torch.allclose(logits, expected, atol=1e-6)  # what each window says of a pixel is the same here
    assert evaluate(Brightest(), split_of(WideMaps(7), Segmentation(3, 255)), accelerator).metrics["mIoU"] > 0


def test_predictions_of_a_classifier_are_stored_per_image(accelerator, tmp_path):
    numbers, toy = Numbers(12), Toy()
    scores = evaluate(toy, split_of(numbers), accelerator, logits=True)
    averaged = evaluate(Toy(seed=3), split_of(numbers), accelerator)
    write_predictions(tmp_path / "predictions.parquet", scores, numbers, averaged)
    frame = pd.read_parquet(tmp_path / "predictions.parquet")
    assert frame["id"].tolist() == [f"number/{index}" for index in range(12)]
    assert frame["index"].tolist() == list(range(12))
    assert 100 * frame["correct"].mean() == pytest.approx(scores.metrics["top1"])
    assert 100 * frame["correct_ema"].mean() == pytest.approx(averaged.metrics["top1"])
    assert [top[0] for top in frame["top5"]] == frame["prediction"].tolist()
    logits = np.stack(frame["logits"].tolist())
    assert logits.dtype == np.float16
    assert logits.argmax(1).tolist() == frame["prediction"].tolist()


def test_predictions_of_a_segmenter_are_areas_per_image(accelerator, tmp_path):
    maps = Maps(5)
    scores = evaluate(Brightest(), split_of(maps, Segmentation(3, 255)), accelerator)
    write_predictions(tmp_path / "predictions.parquet", scores, maps)
    frame = pd.read_parquet(tmp_path / "predictions.parquet")
    intersect, union = (np.stack(frame[name].tolist()).sum(0) for name in ("intersect", "union"))
    assert 100 * (intersect / union).mean() == pytest.approx(scores.metrics["mIoU"])
