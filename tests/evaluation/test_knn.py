"""Nearest neighbours against a loop that votes by hand."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from bench.evaluation.knn import vote


def naive_vote(query, features, labels, classes, neighbours, temperature):
    cosines = [sum(a * b for a, b in zip(query, feature, strict=True)) for feature in features]
    nearest = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:neighbours]
    votes = [0.0] * classes
    for i in nearest:
        votes[labels[i]] += math.exp(cosines[i] / temperature)
    return votes


@pytest.mark.parametrize("neighbours", [1, 5, 100])
def test_votes_equal_a_loop(neighbours):
    generator = torch.Generator().manual_seed(0)
    features = normalize(torch.randn(30, 4, generator=generator), dim=1)
    queries = normalize(torch.randn(6, 4, generator=generator), dim=1)
    labels = torch.arange(30) % 3
    totals = vote(queries, features, labels, 3, neighbours=neighbours, temperature=0.5)
    for query, votes in zip(queries.tolist(), totals.tolist(), strict=True):
        expected = naive_vote(query, features.tolist(), labels.tolist(), 3, neighbours, 0.5)
        assert votes == pytest.approx(expected, rel=1e-4)
