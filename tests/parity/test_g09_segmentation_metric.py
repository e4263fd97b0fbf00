"""Segmentation scores equal those of mmsegmentation (golden g09)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bench.metrics import Areas, areas, overlap, total

NAMES = {"intersect": "intersect", "union": "union", "predicted": "pred", "labelled": "label"}  # ours, theirs


@pytest.fixture(scope="module")
def folder(golden: Path) -> Path:
    return golden / "g09_segmentation"


def cases(folder: Path) -> dict:
    return json.loads((folder / "iou.json").read_text())


def measured(folder: Path, case: str) -> Areas:
    facts, inputs = cases(folder), load_file(folder / "iou_inputs.safetensors")
    parts = []
    for i in range(facts["n_images"]):
        labels = inputs[f"{case}.label.{i}"]
        if facts["cases"][case]["reduce_zero_label"]:
            labels = torch.where((labels == 0) | (labels == 255), 255, labels - 1).to(torch.uint8)
        parts.append(areas(inputs[f"{case}.pred.{i}"], labels, facts["num_classes"], facts["ignore_index"]))
    return total(parts)


def test_areas_and_scores_equal_the_published_code(folder):
    expected = load_file(folder / "iou_outputs.safetensors")
    for case, scores in cases(folder)["cases"].items():
        found = measured(folder, case)
        for ours, theirs in NAMES.items():
            assert getattr(found, ours).tolist() == expected[f"{case}.area_{theirs}"].tolist(), (case, ours)
        result = overlap(found)
        np.testing.assert_allclose(result.iou / 100, expected[f"{case}.IoU"].numpy(), rtol=1e-9)
        np.testing.assert_allclose(result.accuracy / 100, expected[f"{case}.Acc"].numpy(), rtol=1e-9)
        for name in ("mIoU", "mAcc", "aAcc"):
            assert getattr(result, name) / 100 == pytest.approx(scores[name], rel=1e-9), (case, name)
