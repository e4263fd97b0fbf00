"""The evaluation loop: every image once, the metric tried before it is believed, predictions as rows."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from toys import CLASSES, Numbers, StopAt, Toy, plain

from bench.config.schema import Protocol
from bench.errors import BenchError
from bench.evaluation.loop import EvalSplit, batches, evaluate, gather, predict
from bench.evaluation.metrics import areas, overlap, total
from bench.evaluation.partial_results import PartialResults
from bench.evaluation.predictions import per_class, write_predictions
from bench.evaluation.scorers import Classification, Segmentation, sanity_check
from bench.evaluation.sliding_window import SlidingWindow, decide, slide
from bench.launch.distributed import connect
from bench.launch.settings import Settings
from bench.launch.signals import Interrupted
from bench.methods.objective import Objective
from bench.pipeline.segmentation_transforms import map_eval_view
from bench.pipeline.transforms import normalise

PROTOCOL = Protocol(resolution=4)


@pytest.fixture(scope="module")
def accelerator():
    return connect(Settings())


def split_of(source, scorer=None, **changes) -> EvalSplit:
    settings = {"window": 4, "batch_size": 5} | changes
    return EvalSplit(source, plain, scorer or Classification(CLASSES), PROTOCOL, **settings)


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
    sanity_check(Classification(3), batch)
    with pytest.raises(AssertionError, match=r"label \+ 0 is 0\.0, not 100"):
        sanity_check(Shifted(3), batch)


@pytest.mark.parametrize("ignore", [255, 0])
def test_the_segmentation_metric_passes_its_own_check(ignore):
    batch = {"map": [Maps()[index]["map"] for index in range(4)], "index": torch.arange(4)}
    if ignore == 0:
        batch["map"] = [torch.where(labels == 255, 0, labels).to(torch.uint8) for labels in batch["map"]]
    sanity_check(Segmentation(3, ignore), batch)


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
    batch = {name: [WideMaps()[index][name] for index in range(3)] for name in ("image", "map")}
    outputs = predict(Brightest(), batch, split_of(WideMaps(), Segmentation(3, 255)), accelerator.device)
    for image, [(logits, _)] in zip(batch["image"], outputs["window_logits"], strict=True):
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


# Label maps: several sizes, mirror images, squeezed pictures, small ones


def scene(index: int) -> dict:
    """A picture of a size of its own, and its label map."""
    generator = np.random.default_rng(index)
    height, width = 8 + index, 11 - index
    pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = generator.integers(0, 3, (height, width), dtype=np.uint8)
    return {"image": Image.fromarray(pixels), "map": labels}


class Scenes(Maps):
    """Pictures of several sizes."""

    def __getitem__(self, index):
        return scene(index)


class Columns(Objective):
    """Logits that depend on where in its window a pixel is, so that windows and mirror images differ."""

    def predict(self, batch):
        image = batch["image"]
        return {"logits": image * torch.linspace(0.5, 2, image.shape[-1])}


def segmented(protocol: Protocol, source=None, **changes) -> EvalSplit:
    source = source or Scenes(4)
    return EvalSplit(source, map_eval_view(protocol), Segmentation(3, 255), protocol, window=8, **changes)


def naive(index: int, protocol: Protocol) -> np.ndarray:
    """The decision for a picture by a loop over sizes, mirror images and windows, one after another."""
    labels = scene(index)["map"]
    total = torch.zeros(3, *labels.shape)
    for scale in protocol.scales:
        image = scene(index)["image"]
        factor = 8 * max(scale, 1) / min(image.size)
        image = image.resize([int(side * factor + 0.5) for side in image.size], Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        pixels = normalise(pixels, protocol.mean, protocol.std)
        for mirrored in (False, True):
            logits = slide(lambda part: Columns().predict({"image": part})["logits"],
                           pixels.flip(-1) if mirrored else pixels, window=8, stride=protocol.stride)  # fmt: skip
            logits = logits.flip(-1) if mirrored else logits
            large = nn.functional.interpolate(logits, labels.shape, mode="bilinear", align_corners=False)
            total += large.softmax(1)[0]
    return total.argmax(0).numpy()


def test_several_sizes_and_mirror_images_have_their_probabilities_averaged(accelerator):
    protocol = Protocol(resolution=8, interpolation="bilinear", stride=5, scales=(0.5, 1.0, 1.5), flip=True)
    split = segmented(protocol)
    batch = next(batches(split, accelerator))
    window_logits = list(predict(Columns(), batch, split, accelerator.device)["window_logits"])
    for index, windows in enumerate(window_logits):
        assert [times for _, times in windows] == [2, 2, 1, 1]  # 0.5 is as large as 1, a picture fills a window
        assert np.array_equal(decide(windows, scene(index)["map"].shape).numpy(), naive(index, protocol))
    parts = [areas(torch.from_numpy(naive(i, protocol)), torch.from_numpy(scene(i)["map"]), 3, 255) for i in range(4)]
    assert evaluate(Columns(), split, accelerator).metrics["mIoU"] == pytest.approx(overlap(total(parts)).mIoU)


def test_a_squeezed_picture_is_one_square_of_the_networks_size(accelerator):
    protocol = Protocol(resolution=8, interpolation="bilinear", whole=True)
    split = segmented(protocol)
    batch = next(batches(split, accelerator))
    assert batch["image"].shape == (4, 3, 8, 8)
    for index, [(logits, _)] in enumerate(predict(Columns(), batch, split, accelerator.device)["window_logits"]):
        image = scene(index)["image"].resize((8, 8), Image.Resampling.BILINEAR)
        pixels = normalise(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None], protocol.mean, protocol.std)
        torch.testing.assert_close(logits, Columns().predict({"image": pixels})["logits"][0])
    assert evaluate(Columns(), split, accelerator).table["labelled"].sum() == sum(
        scene(index)["map"].size for index in range(4)
    )


def test_a_picture_that_does_not_fill_a_window_is_padded_for_the_network_alone():
    def network(images):
        assert images.shape[-2:] == (8, 8)
        return images

    picture = torch.randn(1, 3, 5, 20)
    [(logits, _)] = SlidingWindow(8)(network, [(picture, 1)])
    torch.testing.assert_close(logits, picture)


def test_strips_decide_as_the_whole_picture_does(monkeypatch):
    logits = torch.randn(5, 7, 9, generator=torch.Generator().manual_seed(0))
    whole = nn.functional.interpolate(logits[None], (23, 31), mode="bilinear", align_corners=False)[0]
    monkeypatch.setattr("bench.evaluation.sliding_window.MAX_LOGITS", 5 * 31 * 4)  # four rows at a time
    assert torch.equal(decide([(logits, 1)], (23, 31)), whole.argmax(0))
    assert torch.equal(decide([(logits, 1), (logits, 2)], (23, 31)), whole.argmax(0))


def test_a_mirror_image_that_is_not_turned_back_is_noticed_before_anything_is_scored(accelerator, monkeypatch):
    monkeypatch.setattr(SlidingWindow, "__call__", lambda sliding_window, network, seen: [
        (sliding_window._logits(network, pictures.flip(-1)), times) for pictures, times in seen
    ])  # fmt: skip
    with pytest.raises(AssertionError, match=r"label \+ 0 is .*, not 100"):
        evaluate(Columns(), segmented(Protocol(resolution=8, flip=True)), accelerator)


# Stopping and going on


class Counting(Toy):
    """Remembers how many images it was asked about."""

    asked = 0

    def predict(self, batch):
        self.asked += len(batch["image"])
        return super().predict(batch)


def test_a_stopped_evaluation_goes_on_with_the_images_that_are_left(accelerator, tmp_path):
    numbers, partial, first, second = Numbers(23), PartialResults(tmp_path), Counting(), Counting()
    with pytest.raises(Interrupted) as stopped:
        evaluate(first, split_of(numbers), accelerator, partial=partial, stop=StopAt(3))
    assert stopped.value.step == first.asked == 15
    scores = evaluate(second, split_of(numbers), accelerator, partial=partial, stop=StopAt(99))
    assert second.asked == 8
    whole = evaluate(Toy(), split_of(numbers), accelerator)
    assert scores.metrics == pytest.approx(whole.metrics)
    assert {name: column.tolist() for name, column in scores.table.items() if name != "loss"} == {
        name: column.tolist() for name, column in whole.table.items() if name != "loss"
    }


def test_another_number_of_processes_may_go_on():
    split = split_of(Numbers(23), batch_size=4)
    shares = [
        [index for batch in batches(split, SimpleNamespace(process_index=rank, num_processes=3,
                                                           device=torch.device("cpu")), [1, 5, 6, 7, 20, 21, 22])
         for index in batch["index"].tolist()]
        for rank in range(3)
    ]  # fmt: skip
    assert shares == [[1, 7, 22], [5, 20], [6, 21]]


def test_images_whose_rows_are_damaged_are_scored_again(accelerator, tmp_path):
    numbers, partial = Numbers(12), PartialResults(tmp_path)
    evaluate(Toy(), split_of(numbers), accelerator, partial=partial)
    (tmp_path / "rows-000000005.npz").write_bytes(b"PK cut short")
    again = Counting()
    scores = evaluate(again, split_of(numbers), accelerator, partial=partial)
    assert again.asked == 5
    assert scores.table["index"].tolist() == list(range(12))


def test_two_images_with_one_id_are_not_stored(accelerator, tmp_path):
    numbers = Numbers(3)
    numbers.name = lambda index: "the same"
    with pytest.raises(AssertionError, match="two images have the same id"):
        write_predictions(tmp_path / "p.parquet", evaluate(Toy(), split_of(numbers), accelerator), numbers)
