"""Draws and scores that several policies share."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.selection_parts import candidates

from fedhybrid.selection.bandit import exploited_places, normalised, preferred_round_s, speed_factor
from fedhybrid.selection.gates import admitted_rows
from fedhybrid.selection.sampling import best, pick_weighted


def test_weighted_draws_follow_the_law_of_drawing_one_after_the_other() -> None:
    weights, rng, draws = np.array([1.0, 2.0, 3.0, 0.0]), np.random.default_rng(0), 20_000
    seen = np.zeros(4)
    for _ in range(draws):
        seen[pick_weighted(np.arange(4), weights, 2, rng)] += 1
    # P(first i) + sum over j of P(first j) P(then i), with weights over 6.
    expected = [
        weights[i] / 6 + sum(weights[j] / 6 * weights[i] / (6 - weights[j]) for j in range(3) if j != i)
        for i in range(3)
    ]
    assert seen[:3] / draws == pytest.approx(expected, abs=0.015)  # four standard deviations
    assert seen[3] == 0


@given(
    weights=st.lists(st.sampled_from([0.0, 1e-300, 1e-9, 1.0, 5.0, 1e300]), max_size=12),
    count=st.integers(0, 15),
    seed=st.integers(0, 99),
)
def test_weighted_draws_are_distinct_and_as_many_as_there_are(weights: list[float], count: int, seed: int) -> None:
    clients = np.arange(len(weights)) * 3
    drawn = pick_weighted(clients, np.array(weights), count, np.random.default_rng(seed))
    assert len(drawn) == min(count, len(weights))
    assert np.all(np.diff(drawn) > 0)
    assert np.isin(drawn, clients).all()


def test_weight_zero_comes_last_and_all_alike() -> None:
    seen: set[int] = set()
    for seed in range(60):
        drawn = pick_weighted(np.arange(5), np.array([0.0, 1.0, 0.0, 1e-6, 0.0]), 3, np.random.default_rng(seed))
        assert {1, 3} < set(drawn.tolist())
        seen |= set(drawn.tolist())
    assert seen == set(range(5))


@given(scores=st.lists(st.sampled_from([-1.0, 0.0, 2.0, 3.0, math.inf]), max_size=12), count=st.integers(0, 14))
def test_best_is_a_full_sort_with_random_ties(scores: list[float], count: int) -> None:
    clients, values = np.arange(len(scores)) + 5, np.array(scores)
    tie = np.random.default_rng(1).random(len(scores))
    expected = clients[np.lexsort((tie, -values))[:count]]
    assert best(clients, values, count, np.random.default_rng(1)).tolist() == expected.tolist()


def test_places_are_rounded_at_random_but_right_on_average() -> None:
    rng = np.random.default_rng(0)
    places = [exploited_places(1, 0.2, tried=9, untried=9, rng=rng) for _ in range(4000)]
    assert set(places) == {0, 1}
    assert np.mean(places) == pytest.approx(0.8, abs=0.03)
    assert exploited_places(1, 0.2, tried=9, untried=9) == 0, "rounded up without"
    assert exploited_places(5, 1.0, tried=9, untried=2, rng=rng) == 3
    assert exploited_places(5, 0.0, tried=2, untried=9, rng=rng) == 2


def test_normalising_looks_at_the_tried_only() -> None:
    utility, tried = np.array([1.0, 2.0, 3.0, 99.0]), np.array([True, True, True, False])
    assert normalised(utility, tried, 100.0)[:3].tolist() == [0.0, 0.5, 1.0]
    assert normalised(utility, ~tried, 100.0).tolist() == [1.0] * 4
    assert normalised(utility, np.zeros(4, bool), 100.0).tolist() == [1.0] * 4


def test_speed_counts_beyond_the_preferred_time_only() -> None:
    round_s = np.array([0.0, 5.0, 10.0, 20.0, math.inf])
    assert speed_factor(round_s, 10.0, 2.0).tolist() == [1.0, 1.0, 1.0, 0.25, 0.0]
    assert speed_factor(round_s, math.inf, 2.0).tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert preferred_round_s(round_s, 50.0) == 7.5
    assert preferred_round_s(round_s, 100.0) == math.inf
    assert preferred_round_s(np.array([math.inf]), 50.0) == math.inf


def test_memory_gates() -> None:
    found = candidates(4, budget_bytes=np.array([30, 50, 99, 100]), round_s=np.array([np.inf, 9.0, np.inf, np.inf]))
    assert admitted_rows(found, "none").tolist() == [0, 1, 2, 3]
    assert admitted_rows(found, "planned").tolist() == [1]
    assert admitted_rows(found, "unplanned").tolist() == [3]
