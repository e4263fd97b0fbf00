"""Segmentation scores equal those of mmsegmentation."""

import numpy as np
import pytest
import torch
from recorded import arrays, exactly, read

from bench.data.datasets.ade20k import reduce_zero_label
from bench.evaluation.metrics import areas, overlap, total

GOLDEN = "g09_segmentation"
NAMES = {"intersect": "intersect", "union": "union", "predicted": "pred", "labelled": "label"}  # ours, theirs


@pytest.fixture
def facts(golden):
    return read(golden / GOLDEN / "iou.json")


@pytest.fixture
def measured(golden, facts):
    """Our areas by case."""
    inputs = arrays(golden / GOLDEN / "iou_inputs.safetensors")
    counts = {}
    for case, options in facts["cases"].items():
        parts = []
        for i, size in enumerate(facts["image_sizes"]):
            labels, prediction = inputs[f"{case}.label.{i}"], inputs[f"{case}.pred.{i}"]
            assert list(labels.shape) == size
            if options["reduce_zero_label"]:
                labels = torch.from_numpy(reduce_zero_label(labels.numpy()))
            parts.append(areas(prediction, labels, facts["num_classes"], facts["ignore_index"]))
        assert len(parts) == facts["n_images"] > 0
        counts[case] = total(parts)
    return counts


def test_labels_with_and_without_a_zero_class_are_among_the_cases(facts):
    assert {case["reduce_zero_label"] for case in facts["cases"].values()} == {False, True}


def test_areas_are_the_recorded_ones(golden, measured):
    expected = arrays(golden / GOLDEN / "iou_outputs.safetensors")
    assert {name.partition(".")[0] for name in expected} == measured.keys()
    for case, counts in measured.items():
        for ours, theirs in NAMES.items():
            assert getattr(counts, ours).tolist() == expected[f"{case}.area_{theirs}"].tolist(), (case, ours)


def test_scores_by_class_and_their_means_are_the_recorded_ones(golden, facts, measured):
    expected = arrays(golden / GOLDEN / "iou_outputs.safetensors")
    for case, scores in facts["cases"].items():
        result = overlap(measured[case])
        np.testing.assert_allclose(result.iou / 100, expected[f"{case}.IoU"].numpy(), rtol=1e-9)
        np.testing.assert_allclose(result.accuracy / 100, expected[f"{case}.Acc"].numpy(), rtol=1e-9)
        for name in ("mIoU", "mAcc", "aAcc"):
            assert getattr(result, name) / 100 == exactly("formulas", scores[name]), (case, name)
            assert round(getattr(result, name), 2) == scores["published_rounding_percent"][name], (case, name)


def test_classes_that_are_nowhere_have_no_score(facts, measured):
    for case, scores in facts["cases"].items():
        result = overlap(measured[case])
        assert np.flatnonzero(np.isnan(result.iou)).tolist() == scores["classes_with_nan_iou"]
        assert np.flatnonzero(np.isnan(result.accuracy)).tolist() == scores["classes_with_nan_acc"]
        assert set(facts["absent_in_both"]) <= set(scores["classes_with_nan_iou"])
        wrong = [*facts["predicted_only"], *facts["labelled_only"]]
        assert not result.iou[wrong].any()
