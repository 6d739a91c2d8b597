"""The power-of-choice policy against its two draws."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.selection_parts import candidates, outcome

from fedhybrid.errors import ConfigError
from fedhybrid.selection import PowerOfChoice


def test_with_one_drawn_for_each_place_it_draws_by_size() -> None:
    policy, found = PowerOfChoice(drawn_per_place=1.0), candidates(3, num_samples=np.array([10, 30, 0]))
    seen = [policy.select(found, 1, policy.init(), round_index=0, seed=seed)[0].item() for seed in range(2000)]
    assert np.mean(seen) == pytest.approx(0.75, abs=0.04)
    assert set(seen) == {0, 1}, "no data, no place"


def test_of_all_drawn_the_highest_loss_and_the_untried_first() -> None:
    policy = PowerOfChoice(drawn_per_place=6.0)
    losses: list[float | None] = [4.0, 9.0, None, 1.0, 25.0]
    state = policy.observe([outcome(client, loss) for client, loss in enumerate(losses)], policy.init())
    order = [policy.select(candidates(), count, state, round_index=1, seed=0)[0].tolist() for count in range(1, 7)]
    assert order == [[5], [4, 5], [1, 4, 5], [0, 1, 4, 5], [0, 1, 3, 4, 5], [0, 1, 2, 3, 4, 5]]


def test_the_last_loss_counts() -> None:
    policy = PowerOfChoice(drawn_per_place=9.0)
    state = policy.observe([outcome(0, 9.0), outcome(1, 4.0)], policy.init())
    state = policy.observe([outcome(0, 1.0, round_index=1), outcome(1, None, round_index=1)], state)
    assert policy.select(candidates(2), 1, state, round_index=2, seed=0)[0].tolist() == [1]


def test_the_more_are_drawn_the_higher_the_losses() -> None:
    found, means = candidates(200), []
    for drawn_per_place in (1.0, 2.0, 5.0, 20.0):
        policy = PowerOfChoice(drawn_per_place=drawn_per_place)
        state = policy.observe([outcome(client, float(client)) for client in range(200)], policy.init())
        cohorts = [policy.select(found, 10, state, round_index=1, seed=seed)[0] for seed in range(30)]
        means.append(float(np.mean(cohorts)))
    assert means == sorted(means)
    assert means[0] == pytest.approx(99.5, abs=15)
    assert means[-1] == 194.5


def test_gate_and_wrong_options() -> None:
    small = candidates(budget_bytes=np.array([50, 100, 50, 50, 100, 50]))
    policy = PowerOfChoice(memory_gate="unplanned")
    assert policy.select(small, 6, policy.init(), round_index=0, seed=0)[0].tolist() == [1, 4]
    with pytest.raises(ConfigError) as caught:
        PowerOfChoice(drawn_per_place=0.5, memory_gate="all")
    assert len(caught.value.problems) == 2
