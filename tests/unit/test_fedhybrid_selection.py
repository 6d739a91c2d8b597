"""The fedhybrid policy against its formulas, one at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tests.unit.selection_parts import CLIENTS, all_tried, candidates, outcome

from fedhybrid.errors import ConfigError
from fedhybrid.records import Outcome
from fedhybrid.selection import FedHybridSelection
from fedhybrid.selection.arms import lookup_arms


def scores_of(policy: FedHybridSelection, outcomes: list[Outcome], round_index: int, **changes: Any) -> list[float]:
    found = candidates(**changes)
    arms = lookup_arms(found.client, policy.observe(outcomes, policy.init()))
    return policy.scores(found, arms, np.arange(CLIENTS), round_index).tolist()


def test_utility_is_stat_times_memory_times_speed() -> None:
    # Utilities 4*1*2, 4*0.5*2, 2*1*2, 4*1*1, 8*0.5*1, 0: normalised by the largest (percentile 100).
    policy = FedHybridSelection(clip_percentile=100.0)
    scores = scores_of(
        policy,
        all_tried([4.0, 4.0, 2.0, 4.0, 8.0, 0.0]),
        0,
        budget_bytes=np.array([100, 50, 300, 100, 50, 100]),
        kernel_s=np.array([0.5, 0.5, 0.5, 1.0, 1.0, 0.5]),
    )
    assert scores == pytest.approx([1.0, 0.5, 0.5, 0.5, 0.5, 0.0])


def test_stat_oort_counts_samples() -> None:
    outcomes = [outcome(client, 4.0, samples=client) for client in range(CLIENTS)]
    scores = scores_of(FedHybridSelection(stat="oort", clip_percentile=100.0), outcomes, 0)
    assert scores == pytest.approx([client / 5 for client in range(CLIENTS)])


def test_utilities_are_clipped_at_the_percentile() -> None:
    losses: list[float | None] = [0.0, 1.0, 2.0, 3.0, 4.0, 1000.0]
    scores = scores_of(FedHybridSelection(clip_percentile=80.0), all_tried(losses), 0)
    assert scores == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0, 1.0])


def test_bonus_of_the_last_round() -> None:
    outcomes = [outcome(client, 1.0, round_index=client) for client in range(CLIENTS)]
    scores = scores_of(FedHybridSelection(), outcomes, 19)
    expected = [1 + math.sqrt(0.1 * math.log(20) / (client + 1)) for client in range(CLIENTS)]
    assert scores == pytest.approx(expected)


def test_bonus_of_ucb1() -> None:
    outcomes = [outcome(client, 1.0) for client in range(CLIENTS) for _ in range(client + 1)]
    scores = scores_of(FedHybridSelection(score="ucb1", bonus=0.5), outcomes, 19)
    expected = [1 + 0.5 * math.sqrt(2 * math.log(20) / (client + 1)) for client in range(CLIENTS)]
    assert scores == pytest.approx(expected)


def test_a_client_without_a_loss_counts_as_tried_and_keeps_its_old_loss() -> None:
    policy = FedHybridSelection()
    state = policy.observe([outcome(1, 9.0), outcome(2, None)], policy.init())
    state = policy.observe([outcome(1, None, round_index=4)], state)
    assert state["client"] == [1, 2]
    assert state["squared_loss_mean"] == [9.0, None]
    assert state["last_round"] == [5, 1]
    assert state["times"] == [2, 1]
    arms = lookup_arms(np.array([0, 1, 2, 3]), state)
    assert arms.tried.tolist() == [False, True, True, False]


@pytest.mark.parametrize(("round_index", "share"), [(0, 0.9), (1, 0.882), (10, 0.9 * 0.98**10), (500, 0.2)])
def test_exploration_decays_to_its_floor(round_index: int, share: float) -> None:
    assert FedHybridSelection().exploration_share_ratio(round_index) == pytest.approx(share)


def test_a_tenth_of_ten_is_one() -> None:
    many = candidates(40)
    policy = FedHybridSelection(exploration_ratio=0.9)
    state = policy.observe([outcome(client, 1.0) for client in range(20)], policy.init())
    cohort, _ = policy.select(many, 10, state, round_index=0, seed=0)
    assert (cohort < 20).sum() == 1, "0.9 of ten places are for untried clients: one is left"


def test_the_cohort_mixes_untried_and_best() -> None:
    policy = FedHybridSelection(exploration_ratio=0.5, exploration_decay=1.0)
    state = policy.observe([outcome(0, 1.0), outcome(1, 5.0), outcome(2, 9.0), outcome(3, 3.0)], policy.init())
    cohort, _ = policy.select(candidates(), 4, state, round_index=3, seed=0)
    assert cohort.tolist() == [1, 2, 4, 5]
    cohort, _ = policy.select(candidates(), 2, state, round_index=3, seed=0)
    assert 2 in cohort
    assert len({4, 5} & set(cohort.tolist())) == 1


def test_a_scarce_kind_is_filled_up_with_the_other() -> None:
    policy = FedHybridSelection(exploration_ratio=1.0, exploration_decay=1.0)
    state = policy.observe(all_tried([1.0, 5.0, 9.0, 3.0, 2.0, None])[:5], policy.init())
    cohort, _ = policy.select(candidates(), 3, state, round_index=3, seed=0)
    assert cohort.tolist() == [1, 2, 5], "one untried client only: two of the best"
    cohort, _ = FedHybridSelection(exploration_ratio=0.0, exploration_floor_ratio=0.0).select(
        candidates(), 3, policy.init(), round_index=0, seed=0
    )
    assert len(cohort) == 3, "nobody tried yet: three untried"


def test_no_plan_no_place() -> None:
    found = candidates(
        budget_bytes=np.array([39, 40, 100, 100, 39, 100]), step_s=np.array([1, 1, np.inf, 1, np.inf, 1.0])
    )
    cohort, _ = FedHybridSelection().select(found, 6, FedHybridSelection().init(), round_index=0, seed=0)
    assert cohort.tolist() == [1, 3, 5]


def test_equal_scores_are_drawn_at_random() -> None:
    policy = FedHybridSelection(exploration_ratio=0.0, exploration_floor_ratio=0.0)
    state = policy.observe(all_tried([2.0] * CLIENTS), policy.init())
    seen = {policy.select(candidates(), 1, state, round_index=9, seed=seed)[0].item() for seed in range(100)}
    assert seen == set(range(CLIENTS))


def test_choices_stay_what_they_were() -> None:
    policy, state, cohorts = FedHybridSelection(exploration_ratio=0.5), FedHybridSelection().init(), []
    found = candidates(20, kernel_s=np.linspace(0.1, 0.5, 20))
    for round_index in range(6):
        cohort, state = policy.select(found, 4, state, round_index=round_index, seed=7)
        outcomes = [outcome(c, None if c % 5 == 4 else c % 7 + 0.5, round_index=round_index) for c in cohort.tolist()]
        state = policy.observe(outcomes, state)
        cohorts.append(cohort.tolist())
    assert cohorts == [
        [4, 5, 6, 8],
        [5, 6, 7, 14],
        [5, 6, 17, 19],
        [1, 5, 6, 16],
        [3, 5, 6, 12],
        [5, 6, 13, 15],
    ]


def test_all_wrong_options_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        FedHybridSelection(stat="median", score="thompson", bonus=-1.0, exploration_ratio=2.0, clip_percentile=0.0)
    assert len(caught.value.problems) == 5
