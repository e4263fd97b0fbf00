"""Mixing does not depend on how a batch is divided, and is timm's."""

import numpy as np
import pytest
import torch

from bench.config.schema import Recipe
from bench.errors import BenchError
from bench.pipeline.mixup import Mixer
from bench.seeding import derive, forked

BATCH, CLASSES = 144, 10
RECIPE = Recipe(mixup=0.8, cutmix=1.0, label_smoothing=0.1)


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 3, 8, 8, generator=generator)
    return images, torch.randint(0, CLASSES, (BATCH,), generator=generator)


def mixed(images, labels, positions, recipe=RECIPE, step=3, seed=1):
    return Mixer(recipe, CLASSES)(
        images[positions], labels[positions], seed=seed, step=step, positions=positions, batch_size=BATCH
    )


def chunk(start: int, pairs: int) -> torch.Tensor:
    """Positions of a micro-batch: some pairs, first halves then second halves."""
    first = torch.arange(start, start + pairs)
    return torch.cat([first, first + BATCH // 2])


def test_dividing_the_batch_changes_no_image_and_no_target(batch):
    whole_images, whole_targets = mixed(*batch, torch.arange(BATCH))
    for size in (1, 8, 12, 36):
        for start in range(0, BATCH // 2, size):
            rows = chunk(start, size)
            images, targets = mixed(*batch, rows)
            assert torch.equal(images, whole_images[rows])
            assert torch.equal(targets, whole_targets[rows])


def test_the_order_inside_a_micro_batch_changes_nothing(batch):
    rows = chunk(0, 36)[torch.randperm(72, generator=torch.Generator().manual_seed(1))]
    whole_images, whole_targets = mixed(*batch, torch.arange(BATCH))
    images, targets = mixed(*batch, rows)
    assert torch.equal(images, whole_images[rows])
    assert torch.equal(targets, whole_targets[rows])


def test_an_image_is_mixed_with_its_partner_half_a_batch_away_and_with_no_other(batch):
    labels = torch.arange(BATCH)  # a class of its own for each image
    mixer = Mixer(Recipe(mixup=0.8), BATCH)
    _, targets = mixer(batch[0], labels, seed=0, step=0, positions=torch.arange(BATCH), batch_size=BATCH)
    for position, target in enumerate(targets):
        assert target.nonzero().flatten().tolist() == sorted([position, (position + BATCH // 2) % BATCH])
        assert target.sum().item() == pytest.approx(1)


def test_image_and_target_are_mixed_in_the_same_proportion(batch):
    images = torch.zeros_like(batch[0])
    images[: BATCH // 2] = 1.0
    labels = (torch.arange(BATCH) >= BATCH // 2).long()
    for step in range(8):
        out, targets = Mixer(Recipe(mixup=0.8, cutmix=1.0), 2)(
            images.clone(), labels, seed=0, step=step, positions=torch.arange(BATCH), batch_size=BATCH
        )
        torch.testing.assert_close(out.mean((1, 2, 3)), targets[:, 0])


def test_steps_seeds_and_groups_of_pairs_are_mixed_differently(batch):
    draws = [mixed(*batch, torch.arange(BATCH), step=step, seed=seed)[1] for step, seed in ((0, 0), (1, 0), (0, 1))]
    strengths = {round(targets[row].max().item(), 6) for targets in draws for row in (0, 32, 64)}
    assert len(strengths) > 3


def test_mixing_is_that_of_timm_on_the_batch_and_its_reverse(batch):
    rows = chunk(0, 32)
    order = torch.cat([rows[:32], rows[32:].flip(0)])  # so that a row's partner is its mirror image
    with forked(derive(1, "mix", 3, 0)):
        expected, targets = Mixer(RECIPE, CLASSES).mix(batch[0][order], batch[1][order])
    ours, our_targets = mixed(*batch, order)
    assert torch.equal(ours, expected)
    assert torch.equal(our_targets, targets)


def test_mixing_leaves_the_images_it_was_given_and_the_generators_alone(batch):
    images, before = batch[0].clone(), np.random.get_state()[1].copy()
    Mixer(RECIPE, CLASSES)(images, batch[1], seed=0, step=0, positions=torch.arange(BATCH), batch_size=BATCH)
    assert torch.equal(images, batch[0])
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize("recipe", [Recipe(label_smoothing=0.1), Recipe(mixup=0.8, mix_prob=0.0, label_smoothing=0.1)])
def test_without_mixing_images_pass_and_labels_are_only_smoothed(batch, recipe):
    images, targets = mixed(*batch, torch.arange(BATCH), recipe=recipe)
    assert torch.equal(images, batch[0])
    expected = torch.nn.functional.one_hot(batch[1], CLASSES) * 0.9 + 0.1 / CLASSES
    torch.testing.assert_close(targets, expected)


def test_an_odd_batch_is_refused(batch):
    with pytest.raises(BenchError, match="batch_size = 7 is odd"):
        Mixer(RECIPE, CLASSES)(batch[0][:7], batch[1][:7], seed=0, step=0, positions=torch.arange(7), batch_size=7)


def test_a_micro_batch_that_splits_a_pair_is_noticed(batch):
    with pytest.raises(AssertionError, match="splits a pair"):
        mixed(*batch, torch.arange(10))
