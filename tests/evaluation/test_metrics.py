"""Metrics against loops anybody can check by hand."""

import math
from dataclasses import asdict, fields

import numpy as np
import pytest
import torch

from bench.errors import BenchError
from bench.evaluation.metrics import Areas, accuracy, areas, overlap, top_classes, total


def naive_top(logits: torch.Tensor, labels: list[int], k: int) -> float:
    hits = 0
    for row, label in zip(logits.tolist(), labels, strict=True):
        ranked = sorted(range(len(row)), key=lambda c: -row[c])
        hits += label in ranked[:k]
    return 100 * hits / len(labels)


def naive_areas(prediction, labels, classes: int, ignore: int) -> dict[str, list[int]]:
    counts = {field.name: [0] * classes for field in fields(Areas)}
    for predicted_row, label_row in zip(prediction.tolist(), labels.tolist(), strict=True):
        for predicted, label in zip(predicted_row, label_row, strict=True):
            if label == ignore:
                continue
            counts["predicted"][predicted] += 1
            counts["labelled"][label] += 1
            counts["intersect"][label] += predicted == label
    return counts


def test_top_1_of_seven_images_by_hand():
    logits = torch.tensor(
        [[3.0, 1, 2], [1, 3, 2], [1, 2, 3], [3, 2, 1], [1, 3, 2], [1, 2, 3], [3, 1, 2]]  # best: 0 1 2 0 1 2 0
    )
    labels = np.array([0, 1, 2, 1, 2, 2, 0])
    top = top_classes(logits, 5).numpy()
    assert accuracy(top, labels, 1) == pytest.approx(100 * 5 / 7)
    assert accuracy(top, labels, 2) == pytest.approx(100)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_equals_a_loop(k):
    logits = torch.randn(40, 9, generator=torch.Generator().manual_seed(0))
    labels = [i % 9 for i in range(40)]
    assert accuracy(top_classes(logits, 5).numpy(), np.array(labels), k) == pytest.approx(naive_top(logits, labels, k))


@pytest.mark.parametrize("ignore", [255, 7])
def test_areas_equal_a_loop_over_pixels(ignore):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 6, (13, 17), generator=generator).to(torch.uint8)
    labels[labels == 5] = ignore  # class 5 is never labelled
    prediction = torch.randint(0, 6, (13, 17), generator=generator).to(torch.uint8)
    counts = {name: value.tolist() for name, value in asdict(areas(prediction, labels, 6, ignore)).items()}
    assert counts == naive_areas(prediction, labels, 6, ignore)


def test_a_class_may_be_the_ignored_one():
    labels = torch.tensor([[0, 1], [1, 1]], dtype=torch.uint8)
    counts = areas(torch.tensor([[0, 1], [0, 1]]), labels, 2, 0)
    assert counts.labelled.tolist() == [0, 3]
    assert counts.predicted.tolist() == [1, 2]


def test_absent_classes_do_not_count_and_wrongly_predicted_ones_count_as_zero():
    labels = torch.tensor([[0, 0, 1, 1]], dtype=torch.uint8)
    prediction = torch.tensor([[0, 2, 1, 1]], dtype=torch.uint8)  # 2: predicted, never labelled; 3: in neither
    scores = overlap(areas(prediction, labels, 4, 255))
    assert scores.iou[:3].tolist() == pytest.approx([50, 100, 0])
    assert math.isnan(scores.iou[3])
    assert scores.mIoU == pytest.approx(50)
    assert scores.mAcc == pytest.approx(75)  # classes 0 and 1
    assert scores.aAcc == pytest.approx(75)


def test_areas_are_added_over_images_before_dividing():
    small = areas(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.uint8), 2, 255)
    large = areas(torch.ones(3, 3), torch.zeros(3, 3, dtype=torch.uint8), 2, 255)
    assert overlap(total([small, large])).iou[0] == pytest.approx(10)  # not (100 + 0) / 2


def test_a_label_beyond_the_classes_is_named():
    labels = torch.tensor([[0, 1, 9]], dtype=torch.uint8)
    with pytest.raises(BenchError, match=r"value 9; there are 3 classes \(0 to 2\), and 255 is ignored"):
        areas(torch.zeros(1, 3), labels, 3, 255)


def test_nothing_labelled_is_not_a_score():
    labels = torch.full((2, 2), 255, dtype=torch.uint8)
    scores = overlap(areas(torch.zeros(2, 2), labels, 3, 255))
    assert math.isnan(scores.mIoU)
    assert math.isnan(scores.aAcc)
