"""The order of images, how a global batch is dealt out, and that workers and processes change neither."""

import random

import pytest
import torch

from bench.errors import BenchError
from bench.pipeline.dataloader import loader
from bench.pipeline.sampler import Batches, epoch_order, micro_batching, planned_steps, steps_per_epoch


def seen(batches: Batches, step: int) -> list[int]:
    return [draw.image for micro in batches.micro_batches(step) for draw in micro]


def test_an_epoch_shows_every_image_once():
    assert sorted(epoch_order(0, 3, 101).tolist()) == list(range(101))


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {tuple(epoch_order(seed, epoch, 50).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_repeated_augmentation_shows_a_third_of_the_images_three_times():
    shown = epoch_order(0, 0, 90, 3)
    images, copies = shown.unique(return_counts=True)
    assert len(shown) == 90
    assert len(images) == 30
    assert set(copies.tolist()) == {3}


def test_copies_of_an_image_get_views_of_their_own_in_one_batch():
    batches = Batches(90, 9, seed=0, repeats=3)
    draws = [draw for micro in batches.micro_batches(4) for draw in micro]
    assert len({draw.image for draw in draws}) == 3
    assert len({(draw.image, draw.copy) for draw in draws}) == 9


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(("processes", "micro"), [(1, None), (1, 4), (2, None), (2, 4), (4, 2), (6, 2)])
def test_processes_and_accumulation_see_the_same_global_batch(processes, micro, paired):
    whole = Batches(100, 24, seed=5, paired=paired)
    parts = [
        Batches(100, 24, seed=5, paired=paired, rank=rank, processes=processes, micro=micro)
        for rank in range(processes)
    ]
    for step in (0, 3, 4, 9):
        expected = {draw.position: draw for draw in whole.micro_batches(step)[0]}
        dealt = [draw for part in parts for micro_batch in part.micro_batches(step) for draw in micro_batch]
        assert sorted(draw.position for draw in dealt) == list(range(24))
        assert {draw.position: draw for draw in dealt} == expected


@pytest.mark.parametrize(("processes", "micro"), [(1, None), (1, 4), (2, 6), (4, 2)])
def test_both_images_of_a_pair_are_in_the_same_micro_batch(processes, micro):
    for rank in range(processes):
        batches = Batches(100, 24, seed=0, paired=True, rank=rank, processes=processes, micro=micro)
        for chunk in batches.micro_batches(1):
            half = len(chunk) // 2
            assert [draw.position + 12 for draw in chunk[:half]] == [draw.position for draw in chunk[half:]]


def test_an_incomplete_batch_at_the_end_of_an_epoch_is_left_out():
    batches = Batches(10, 4, seed=0)
    assert batches.steps_per_epoch == 2
    first_epoch = seen(batches, 0) + seen(batches, 1)
    assert len(set(first_epoch)) == 8
    assert seen(batches, 2) == epoch_order(0, 1, 10)[:4].tolist()


def test_steps_are_rounded_to_whole_ones():
    assert planned_steps(1_281_167, 1024, 300) == 375_300  # 1,251 per epoch; P-DeiT
    assert planned_steps(1_281_167, 2048, 800) == 500_000  # P-BEiT 2.5
    assert planned_steps(10, 4, 1.3) == 3
    assert planned_steps(10, 4, 0.01) == 1


@pytest.mark.parametrize(
    ("arguments", "fitting"),
    [
        ({"batch_size": 10, "processes": 4}, "1, 2, 5, 10"),
        ({"batch_size": 10, "processes": 4}, "8 or 12"),
        ({"batch_size": 32, "processes": 2, "micro": 5}, "1, 2, 4, 8, 16"),
        ({"batch_size": 32, "processes": 2, "micro": 64}, "1, 2, 4, 8, 16"),
        ({"batch_size": 6, "processes": 2, "paired": True}, "1, 3"),
        ({"batch_size": 12, "processes": 2, "micro": 3, "paired": True}, "2, 6"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_with_the_numbers_that_fit(arguments, fitting):
    with pytest.raises(BenchError, match=fitting):
        micro_batching(**arguments)


def test_a_data_set_smaller_than_a_batch_is_refused():
    with pytest.raises(BenchError, match="7 images do not fill one batch of 8"):
        steps_per_epoch(7, 8)


def noisy_view(sample):
    return {"image": torch.full((2,), float(sample["number"])) + torch.rand(2), "chance": random.random()}


NUMBERS = [{"number": number} for number in range(20)]


def batches_of(workers: int, start: int = 0, **dealt) -> list:
    batches = Batches(20, 8, seed=3, **dealt)
    return list(loader(NUMBERS, noisy_view, batches, seed=3, start=start, stop=5, workers=workers))


def same(first: list, second: list) -> bool:
    return all(
        torch.equal(a[name], b[name])
        for step, second_step in zip(first, second, strict=True)
        for a, b in zip(step, second_step, strict=True)
        for name in a
    )


def test_workers_do_not_change_what_is_seen():
    assert same(batches_of(0), batches_of(2))


def test_a_loader_started_late_sees_what_it_would_have_seen():
    assert same(batches_of(0)[3:], batches_of(0, start=3))


def test_a_view_depends_on_the_image_and_epoch_alone():
    def views(**dealt):
        micro = [batch for step in batches_of(0, **dealt) for batch in step]
        return {
            (int(i), round(float(c), 6))
            for batch in micro
            for i, c in zip(batch["index"], batch["chance"], strict=True)
        }

    both = views(rank=0, processes=2, micro=2) | views(rank=1, processes=2, micro=2)
    assert both == views()


def test_two_epochs_show_an_image_differently():
    batches = Batches(8, 8, seed=0)
    first, second = (step[0] for step in loader(NUMBERS[:8], noisy_view, batches, seed=0, start=0, stop=2, workers=0))
    assert not torch.equal(first["image"][first["index"].argsort()], second["image"][second["index"].argsort()])


def test_loading_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    undisturbed = torch.rand(())
    torch.manual_seed(0)
    batches_of(0)
    batches_of(1)
    assert torch.equal(torch.rand(()), undisturbed)
