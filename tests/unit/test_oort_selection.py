"""The oort policy against its formulas, one at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tests.unit.selection_parts import CLIENTS, all_tried, candidates, outcome

from fedhybrid.errors import ConfigError
from fedhybrid.protocols import PolicyState
from fedhybrid.selection import Oort
from fedhybrid.selection.arms import lookup_arms

EXPLOIT: dict[str, Any] = {"exploration_ratio": 0.0, "exploration_floor_ratio": 0.0}


def scores_of(policy: Oort, state: PolicyState, *, round_s: list[float], preferred_s: float, round_index: int) -> Any:
    arms = lookup_arms(np.arange(CLIENTS), state)
    return policy.scores(arms, np.array(round_s), preferred_s, round_index).tolist()


def test_score_is_utility_plus_bonus_times_speed() -> None:
    policy = Oort(clip_percentile=100.0)
    # Utilities 10*2, 10*4, 5*4, 10*0, 10*4, none: normalised by 40.
    outcomes = [outcome(0, 4.0), outcome(1, 16.0), outcome(2, 16.0, samples=5), outcome(3, 0.0), outcome(5, None)]
    state = policy.observe([*outcomes, outcome(4, 16.0, round_index=8)], policy.init())
    found = scores_of(policy, state, round_s=[10, 20, 30, 10, 40, 10], preferred_s=20.0, round_index=19)
    early, late = math.sqrt(0.1 * math.log(20)), math.sqrt(0.1 * math.log(20) / 9)
    slow = (20 / 30) ** 2
    assert found == pytest.approx([0.5 + early, 1 + early, (0.5 + early) * slow, early, (1 + late) * 0.25, early])


def test_the_cohort_is_drawn_above_the_cut_off_in_proportion_to_utility() -> None:
    policy = Oort(**EXPLOIT, bonus=0.0, cut_off_ratio=0.5, clip_percentile=100.0)
    state = policy.observe(all_tried([0.0, 1.0, 4.0, 9.0, 16.0, 25.0]), policy.init())
    seen = np.zeros(CLIENTS)
    for seed in range(3000):
        seen[policy.select(candidates(), 1, state, round_index=1, seed=seed)[0]] += 1
    assert seen[:3].sum() == 0, "scores 0, 0.2, 0.4 are below half of 1"
    assert seen[3:] / 3000 == pytest.approx(np.array([0.6, 0.8, 1.0]) / 2.4, abs=0.04)


def test_exploration_prefers_fast_clients() -> None:
    policy = Oort()
    found = candidates(4, round_s=np.array([10.0, 20.0, 70.0, np.inf]))
    seen = np.zeros(4)
    for seed in range(3000):
        seen[policy.select(found, 1, policy.init(), round_index=0, seed=seed)[0]] += 1
    weights = np.array([1 / 10, 1 / 20, 1 / 70, 0])
    assert seen / 3000 == pytest.approx(weights / weights.sum(), abs=0.04)


def test_the_preferred_time_is_a_percentile_of_the_fit() -> None:
    policy = Oort(**EXPLOIT, bonus=0.0, preferred_percentile=50.0)
    found = candidates(budget_bytes=np.array([100] * 5 + [50]), round_s=np.array([10, 20, 30, 40, 50, 1.0]))
    state = policy.observe(all_tried([4.0] * 6), policy.init())
    cohort, _ = policy.select(found, 3, state, round_index=1, seed=0)
    assert cohort.tolist() == [0, 1, 2], "30 s is the median; the small device is not fit"


def windows_of(policy: Oort, gains: list[float], *, until: int) -> list[float]:
    """The percentile in each round, where round i gains `gains[i]`."""
    state, percentiles = policy.init(), []
    for round_index in range(until):
        _, state = policy.select(candidates(), 2, state, round_index=round_index, seed=0)
        percentiles.append(state["preferred_percentile"])
        state = policy.observe([outcome(0, gains[round_index] ** 2, round_index=round_index, samples=1)], state)
    return percentiles


def test_the_pacer_gives_time_when_a_window_gains_less_than_the_one_before() -> None:
    policy = Oort(pacer_window_rounds=2, preferred_percentile=85.0, pacer_percentile_step=10.0)
    gains = [5.0, 5.0, 3.0, 3.0, 4.0, 4.0, 4.0, 4.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    # Windows gain 10, 6, 8, 8, 2, 0: less than before in the second, the fifth and the sixth.
    expected = [85.0] * 4 + [95.0] * 6 + [100.0] * 3
    assert windows_of(policy, gains, until=13) == expected


def test_a_late_outcome_counts_in_its_own_window() -> None:
    policy = Oort(pacer_window_rounds=2)
    state = policy.observe([outcome(0, 9.0, round_index=3, samples=2)], policy.init())
    state = policy.observe([outcome(1, 4.0, round_index=1, samples=2), outcome(2, None, round_index=4)], state)
    assert state["window_utility"] == [[0, 4.0], [1, 6.0]]


def test_memory_gates() -> None:
    found = candidates(
        budget_bytes=np.array([100, 50, 100, 50, 30, 30]), round_s=np.array([9, 9, 9, 9, np.inf, np.inf])
    )
    for gate, fit in (("unplanned", [0, 2]), ("planned", [0, 1, 2, 3]), ("none", [0, 1, 2, 3, 4, 5])):
        policy = Oort(memory_gate=gate)
        assert policy.select(found, 6, policy.init(), round_index=0, seed=0)[0].tolist() == fit


def test_the_blacklist_holds_while_enough_others_are_there() -> None:
    policy = Oort(**EXPLOIT, blacklist_after=2)
    state = policy.init()
    for round_index in range(3):
        state = policy.observe([outcome(c, 100.0, round_index=round_index) for c in (0, 1)], state)
    state = policy.observe([outcome(c, 1.0, round_index=3) for c in (2, 3)], state)
    few, _ = policy.select(candidates(4), 2, state, round_index=4, seed=0)
    assert few.tolist() == [2, 3]
    all_places, _ = policy.select(candidates(4), 3, state, round_index=4, seed=0)
    assert {0, 1} < set(all_places.tolist())


def test_all_wrong_options_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Oort(memory_gate="x", bonus=-1, pacer_window_rounds=0, cut_off_ratio=2, clip_percentile=0, blacklist_after=-1)
    assert len(caught.value.problems) == 6
