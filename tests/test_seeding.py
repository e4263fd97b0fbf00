"""Seeds depend on their purpose alone, and drawing under one leaves no trace."""

import random

import numpy as np
import torch

from bench.seeding import derive, forked, seed_all


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_seed_is_the_same_on_every_machine():
    assert derive(0, "view", 3, 17) == 1567593977536575751


def test_purposes_do_not_share_seeds():
    purposes = [(0,), (1,), (0, 1), (0, "1"), (0, "a", "b"), (0, "ab"), (0, 1, 2), (0, 12), (0, "b", "a")]
    assert len({derive(*purpose) for purpose in purposes}) == len(purposes)


def test_seeds_fit_all_three_generators():
    for purpose in range(200):
        seed = derive(0, purpose)
        assert 0 <= seed < 2**63
        seed_all(seed)


def test_draws_repeat_under_the_same_seed_and_differ_under_another():
    with forked(1):
        first = draws()
    with forked(1):
        again = draws()
    with forked(2):
        other = draws()
    assert first == again
    assert not set(first) & set(other)


def test_the_global_generators_go_on_as_if_nothing_had_been_drawn():
    seed_all(7)
    undisturbed = [draws() for _ in range(2)]
    seed_all(7)
    first = draws()
    with forked(1):
        draws()
    assert [first, draws()] == undisturbed


def test_the_global_generators_survive_an_error():
    seed_all(7)
    undisturbed = draws()
    seed_all(7)
    try:
        with forked(1):
            raise RuntimeError
    except RuntimeError:
        pass
    assert draws() == undisturbed
