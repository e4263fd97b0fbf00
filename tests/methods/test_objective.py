"""Objectives: losses by hand, what learns and what does not, what is saved, the pictures."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from bench.config.schema import Model, Recipe
from bench.errors import BenchError
from bench.methods.classification import Loss, build_classifier
from bench.methods.linear_probe import build_probe
from bench.methods.objective import Objective
from bench.methods.segmentation import build_segmenter

CLASSES = 5


def model(**changes):
    small = {"trunk": "beit", "width": 24, "depth": 2, "heads": 3, "image_size": 16, "patch_size": 4}
    return Model(**(small | {"classes": CLASSES} | changes))


def batch(images=4):
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(images, 3, 16, 16, generator=generator),
        "label": torch.arange(images) % CLASSES,
        "map": (torch.arange(images) % CLASSES).view(-1, 1, 1).repeat(1, 16, 16),
        "position": torch.arange(images),
    }


def step(objective, given, number=0):
    """Prepare and run one training micro-batch that is the whole batch."""
    return objective(objective.prepare(given, seed=0, step=number, batch_size=len(given["position"])))


NETWORKS = {
    "mean pooling": lambda: build_classifier(model(position="relative", layer_scale=0.1), Recipe(pool="mean")),
    "class token": lambda: build_classifier(model(trunk="vit"), Recipe()),
    "distillation token": lambda: build_classifier(model(trunk="vit", distilled=True), Recipe()),
    "tanh layer": lambda: build_classifier(model(trunk="vit"), Recipe(), style="vit", representation=True),
    "convolutions": lambda: build_classifier(model(trunk="timm:test_resnet"), Recipe()),
    "linear decoder": lambda: build_segmenter(model(decoder="linear"), Recipe(), ignore_label=255),
    "setr-pup": lambda: build_segmenter(model(trunk="vit", decoder="setr-pup"), Recipe(), ignore_label=255),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_every_trainable_parameter_gets_a_gradient(network):
    objective = NETWORKS[network]()
    step(objective, batch())["loss"].backward()
    assert [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("network", NETWORKS)
def test_the_loss_falls_when_the_gradient_is_followed(network):
    torch.manual_seed(0)
    objective, given = NETWORKS[network](), batch()
    optimiser = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for number in range(8):
        optimiser.zero_grad()
        losses.append(step(objective, given, number)["loss"])
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.9 * losses[0]


def test_the_loss_is_a_sum_so_that_parts_add_up_to_the_whole():
    objective, given = NETWORKS["mean pooling"](), batch()
    whole = objective(given)
    parts = [objective({key: value[s] for key, value in given.items()}) for s in (slice(0, 1), slice(1, 4))]
    for name, value in whole.items():
        torch.testing.assert_close(value, sum(part[name] for part in parts))
    assert whole["count"] == 4


def test_softmax_loss_with_smoothing_by_hand():
    logits = torch.tensor([[1.0, 0.0, -1.0]])
    loss = Loss(smoothing=0.3)
    log_total = math.log(math.e + 1 + 1 / math.e)
    expected = 0.8 * (log_total - 1) + 0.1 * log_total + 0.1 * (log_total + 1)
    assert loss(logits, loss.target(torch.tensor([0]), 3)).item() == pytest.approx(expected, rel=1e-6)


def test_sigmoid_loss_adds_one_question_per_class():
    logits = torch.tensor([[2.0, -1.0]])
    loss = Loss(kind="sigmoid")
    expected = math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))
    assert loss(logits, loss.target(torch.tensor([0]), 2)).item() == pytest.approx(expected, rel=1e-6)


def test_logits_in_half_precision_lose_nothing_in_the_loss():
    logits = torch.tensor([[8.0, 7.5, -3.0]])
    loss = Loss()
    target = loss.target(torch.tensor([1]), 3)
    assert loss(logits.bfloat16(), target) == loss(logits, target)


def test_mixed_targets_are_learned_and_no_accuracy_is_claimed_for_them():
    objective = build_classifier(model(), Recipe(mixup=0.8, cutmix=1.0, label_smoothing=0.1))
    given = batch()
    prepared = objective.prepare(dict(given), seed=0, step=0, batch_size=4)
    assert prepared["target"].sum(1).tolist() == pytest.approx([1.0] * 4)
    assert "accuracy" not in objective(prepared)
    assert "accuracy" in objective(given)


def test_a_distilled_classifier_without_a_teacher_teaches_both_heads_the_labels():
    objective, given = NETWORKS["distillation token"](), batch()
    outputs, target = objective.predict(given), objective.target(given)
    expected = (objective.loss(outputs["cls"], target) + objective.loss(outputs["dist"], target)) / 2
    torch.testing.assert_close(objective(given)["loss"], expected)


def test_ignored_pixels_count_for_nothing():
    objective, given = NETWORKS["linear decoder"](), batch()
    given["map"][:, 8:] = 255
    outputs = objective(given)
    assert outputs["count"] == 4 * 16 * 16  # of the mean, as in the published code; they add nothing to the sum
    logits = objective.predict(given)["logits"][:, :, :8].movedim(1, -1).reshape(-1, CLASSES)
    expected = nn.functional.cross_entropy(logits, given["map"][:, :8].flatten(), reduction="sum")
    torch.testing.assert_close(outputs["loss"], expected)
    right = (logits.argmax(1) == given["map"][:, :8].flatten()).sum()
    assert outputs["pixel_accuracy"] == right


def test_a_map_of_ignored_pixels_gives_no_loss_and_no_nan():
    objective, given = NETWORKS["linear decoder"](), batch()
    given["map"][:] = 255
    assert objective(given)["loss"] == 0


def test_segmentation_needs_a_decoder_that_exists():
    with pytest.raises(BenchError, match=r"model\.decoder, one of linear, setr-pup, upernet"):
        build_segmenter(model(), Recipe(), ignore_label=255)


# Linear probe


def test_a_probe_leaves_the_backbone_alone_and_in_evaluation_mode():
    objective = build_probe(model()).train()
    assert not objective.backbone.training
    step(objective, batch())["loss"].backward()
    learned = [name for name, parameter in objective.named_parameters() if parameter.grad is not None]
    assert learned
    assert all(name.startswith("head.linear.") for name in learned)


def test_a_probe_trains_a_classifier_on_every_block_and_scores_one():
    objective, given = build_probe(model(depth=4)), batch()
    outputs, target = objective.predict(given), objective.target(given)
    assert torch.equal(outputs["logits"], outputs["layer3"])
    total = sum(objective.loss(outputs[f"layer{number}"], target) for number in range(1, 5))
    torch.testing.assert_close(objective(given)["loss"], total)


def test_a_probe_of_a_block_that_does_not_exist_is_refused():
    with pytest.raises(BenchError, match="layer = 9: the backbone has blocks 1 to 2"):
        build_probe(model(), layer=9)


# What is saved, what is shown


class WithTeacher(Objective):
    """A student, and a frozen teacher beside it."""

    frozen = ("teacher",)

    def __init__(self):
        super().__init__()
        self.student, self.teacher = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        self.freeze()


def test_what_is_frozen_is_neither_trained_nor_saved():
    objective = WithTeacher().train()
    assert not objective.teacher[1].training
    assert {name for name, p in objective.named_parameters() if p.requires_grad} == {"student.weight", "student.bias"}
    assert set(objective.trainable_state()) == {"student.weight", "student.bias"}


def test_a_saved_state_comes_back_and_leaves_the_teacher():
    first, second = WithTeacher(), WithTeacher()
    teacher = second.teacher[0].weight.clone()
    second.load_trainable_state(first.trainable_state())
    assert torch.equal(second.student.weight, first.student.weight)
    assert torch.equal(second.teacher[0].weight, teacher)


@pytest.mark.parametrize(
    "change", [{"student.bias": torch.zeros(3)}, {"head.bias": torch.zeros(2)}, {"student.weight": None}]
)
def test_a_state_that_does_not_fit_is_refused_by_name(change):
    objective = WithTeacher()
    state = {key: value for key, value in (objective.trainable_state() | change).items() if value is not None}
    with pytest.raises(BenchError, match=next(iter(change))):
        objective.load_trainable_state(state)


def test_pictures_show_the_prediction_and_where_the_class_token_looks():
    shown = NETWORKS["mean pooling"]().eval().pictures(batch())
    assert shown["attention"].shape == (4, 4, 4)
    assert (shown["attention"] >= 0).all()
    assert (shown["attention"].sum((1, 2)) < 1).all()
    assert set(shown["prediction"]) <= set(range(CLASSES))
    assert all(isinstance(value, np.ndarray) for value in shown.values())


def test_features_are_what_the_classifier_reads():
    objective, given = NETWORKS["mean pooling"]().eval(), batch()
    torch.testing.assert_close(objective.head.head(objective.features(given)), objective.predict(given)["logits"])
