"""The planned-utility policy: its score, its floor, and both in a small world of four tiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from tests.unit.selection_parts import CLIENTS, all_tried, candidates, outcome

from fedhybrid.errors import ConfigError
from fedhybrid.selection import PlannedUtility
from fedhybrid.selection.arms import lookup_arms
from fedhybrid.selection.floor import ParticipationFloor, empty_floor

EXPLOIT: dict[str, Any] = {"exploration_ratio": 0.0, "exploration_floor_ratio": 0.0}


@dataclass(frozen=True, kw_only=True)
class Played:
    """What came of a run, by tier, in units of the tier's share of the fleet; shares of rounds are averages."""

    completed: np.ndarray
    asked: np.ndarray
    longest_s: float
    informative_ratio: float
    worst_windows: np.ndarray


def play(policy: PlannedUtility, *, rounds: int = 300, count: int = 10, failing: float = 0.0) -> Played:
    """Tiers that take 10, 20, 60 and 300 s; three clients of ten teach thrice as much; the last tier may fail."""
    rng, clients = np.random.default_rng(0), 400
    tier = np.repeat(np.arange(4), [120, 120, 100, 60])
    round_s = np.array([10.0, 20, 60, 300])[tier] * rng.uniform(0.8, 1.2, clients)
    informative = rng.random(clients) < 0.3
    found = candidates(clients, tier=tier, round_s=round_s)
    state, asked, completed = policy.init(), [], []
    longest_s, teaching = 0.0, 0
    for round_index in range(rounds):
        cohort, state = policy.select(found, count, state, round_index=round_index, seed=round_index)
        came = (tier[cohort] < 3) | (rng.random(len(cohort)) >= failing)
        state = policy.observe(
            [
                outcome(int(c), 9.0 if informative[c] else 1.0, round_index=round_index)
                if ok
                else outcome(int(c), None, round_index=round_index, kind="crash")
                for c, ok in zip(cohort, came, strict=True)
            ],
            state,
        )
        asked.append(np.bincount(tier[cohort], minlength=4))
        completed.append(np.bincount(tier[cohort[came]], minlength=4))
        longest_s += round_s[cohort].max() / rounds
        teaching += informative[cohort].sum()
    share, done = np.bincount(tier) / clients, np.array(completed)
    windows = np.array([done[i : i + 60].sum(axis=0) for i in range(rounds - 60)])
    return Played(
        completed=done.sum(axis=0) / done.sum() / share,
        asked=np.sum(asked, axis=0) / np.sum(asked) / share,
        longest_s=longest_s,
        informative_ratio=teaching / np.sum(asked),
        worst_windows=(windows / windows.sum(axis=1, keepdims=True)).min(axis=0) / share,
    )


class TestWorld:
    def test_every_tier_has_its_floor_and_fast_informative_clients_are_preferred(self) -> None:
        played = play(PlannedUtility())
        assert played.completed.min() >= 0.49
        assert played.worst_windows.min() >= 0.4  # any 60 rounds, less what is being saved up for a burst
        assert min(played.completed[:2]) > 1.2
        assert played.informative_ratio > 0.5  # of 0.3

    def test_without_a_floor_slow_tiers_are_hardly_heard(self) -> None:
        assert play(PlannedUtility(floor_ratio=0.0)).worst_windows.min() < 0.25

    def test_a_full_floor_is_participation_in_proportion(self) -> None:
        assert play(PlannedUtility(floor_ratio=1.0)).completed == pytest.approx(np.ones(4), abs=0.05)

    def test_places_paid_together_make_rounds_shorter_at_the_same_participation(self) -> None:
        together, singly = play(PlannedUtility()), play(PlannedUtility(floor_burst_ratio=0.0))
        assert together.completed == pytest.approx(singly.completed, abs=0.1)
        assert together.longest_s < 0.7 * singly.longest_s

    def test_failed_places_are_owed_again_but_not_for_ever(self) -> None:
        assert play(PlannedUtility(), failing=0.3).completed[3] >= 0.49
        hopeless = play(PlannedUtility(), failing=1.0)
        assert hopeless.completed[3] == 0
        assert hopeless.asked[3] <= 1.05

    def test_the_floor_holds_where_tasks_are_given_out_one_at_a_time(self) -> None:
        assert play(PlannedUtility(), rounds=3000, count=1).completed.min() >= 0.48


def scores_of(outcomes: list[Any], *, round_index: int = 0, policy: PlannedUtility | None = None) -> list[float]:
    policy = policy or PlannedUtility(clip_percentile=100.0)
    arms = lookup_arms(np.arange(CLIENTS), policy.observe(outcomes, policy.init()))
    return policy.scores(arms, round_index).tolist()


def test_score_is_utility_plus_bonus_times_success() -> None:
    # Utilities 0, 10, 20, 30, 40 and unknown: that one stands at the median, 20; it has failed once.
    outcomes = [outcome(c, float(c) ** 2) for c in range(5)] + [outcome(5, None, kind="crash")]
    assert scores_of(outcomes) == pytest.approx([0, 0.25, 0.5, 0.75, 1.0, 0.5 / 2])
    bonus = 0.1 * np.sqrt(2 * np.log(20))
    assert scores_of(outcomes, round_index=19)[4] == pytest.approx(1 + bonus)


def test_memory_counts_through_time_only() -> None:
    policy = PlannedUtility(**EXPLOIT, floor_ratio=0.0)
    state = policy.observe(all_tried([4.0, 1.0, 4.0, 1.0, 4.0, 4.0]), policy.init())
    found = candidates(
        budget_bytes=np.array([41, 100, 41, 100, 41, 41]),
        kernel_s=np.array([9.0, 1, 9, 1, 9, 9]),
        round_s=np.array([60.0, 60, 60, 60, np.inf, 600.0]),
    )
    cohort, _ = policy.select(found, 2, state, round_index=1, seed=0)
    assert cohort.tolist() == [0, 2], "small and slow devices whose planned task is as quick as the others'"
    everybody, _ = policy.select(found, 6, state, round_index=1, seed=0)
    assert everybody.tolist() == [0, 1, 2, 3, 5]


def test_equal_times_leave_the_utility_alone() -> None:
    policy = PlannedUtility(**EXPLOIT, floor_ratio=0.0)
    state = policy.observe(all_tried([1.0, 9.0, 4.0, 16.0, 25.0, 0.0]), policy.init())
    for round_s in (0.0, 1e-9, 60.0, 1e9):
        found = candidates(round_s=np.full(CLIENTS, round_s))
        assert policy.select(found, 2, state, round_index=1, seed=0)[0].tolist() == [3, 4]


def test_early_on_untried_clients_are_drawn_by_size_and_speed() -> None:
    policy = PlannedUtility(floor_ratio=0.0)
    found = candidates(3, num_samples=np.array([10, 20, 20]), round_s=np.array([5.0, 10.0, 40.0]))
    seen = np.zeros(3)
    for seed in range(3000):
        seen[policy.select(found, 1, policy.init(), round_index=0, seed=seed)[0]] += 1
    assert seen / 3000 == pytest.approx(np.array([10, 20, 5]) / 35, abs=0.04)


def test_places_of_the_floor_go_to_those_who_took_part_least() -> None:
    policy = PlannedUtility(floor_ratio=1.0, floor_burst_ratio=0.0, **EXPLOIT)
    state = policy.observe([outcome(c, 100.0) for c in (0, 1, 2, 0, 1, 0)], policy.init())
    cohort, _ = policy.select(candidates(3), 1, state, round_index=3, seed=0)
    assert cohort.tolist() == [2]


class TestLedger:
    FLOOR = ParticipationFloor(floor_ratio=0.5, burst_ratio=0.5, window_rounds=4)

    @staticmethod
    def paid(floor: ParticipationFloor, tiers: np.ndarray, rounds: int) -> list[int]:
        """Places of tier 1 in each round where nobody but the floor chooses it and all tasks complete."""
        state, paid = empty_floor(), []
        for _ in range(rounds):
            places, state = floor.places(state, tiers, 8)
            paid.append(int(places[1]))
            state = floor.chosen(state, np.arange(8), np.repeat([0, 1], [8 - places[1], places[1]]))
            state = floor.observed(state, [outcome(client, 1.0) for client in range(8)])
        return paid

    def test_it_saves_up_for_a_burst(self) -> None:
        # Each tier is owed 2 of 8 places a round; at the very first, both are due, which makes 4.
        assert self.paid(self.FLOOR, np.repeat([0, 1], [8, 8]), 7) == [2, 0, 4, 0, 4, 0, 4]

    def test_a_small_tier_waits_no_longer_than_the_window(self) -> None:
        patient = ParticipationFloor(floor_ratio=0.5, burst_ratio=1.0, window_rounds=4)
        # Owed one place of 8 a round, while a burst is 8.
        assert self.paid(patient, np.repeat([0, 1], [30, 10]), 8) == [0, 0, 0, 4, 0, 0, 0, 4]

    def test_a_failure_is_owed_again_at_most_as_fast_as_the_claim(self) -> None:
        tiers = np.zeros(10, np.int64)
        _, state = self.FLOOR.places(empty_floor(), tiers, 4)
        state = self.FLOOR.chosen(state, np.arange(4), np.zeros(4, np.int64))
        assert state["owed"] == [-2.0]
        assert state["out"] == [[0, 0], [1, 0], [2, 0], [3, 0]]
        ends = [outcome(c, None, kind="crash") for c in (0, 1, 2)] + [outcome(3, 1.0), outcome(9, None, kind="late")]
        state = self.FLOOR.observed(state, ends)
        assert (state["lost"], state["out"]) == ([3.0], []), "client 9 was not chosen by this policy"
        _, state = self.FLOOR.places(state, tiers, 4)
        assert (state["owed"], state["lost"]) == ([2.0], [1.0])

    def test_clients_with_a_task_count_as_part_of_their_tier(self) -> None:
        state = empty_floor() | {"owed": [0.0, 0.0], "lost": [0.0, 0.0], "out": [[90, 1], [91, 1], [92, 1]]}
        _, state = self.FLOOR.places(state, np.zeros(3, np.int64), 2)
        assert state["owed"] == [0.5, 0.5]

    def test_nobody_is_owed_more_than_there_is(self) -> None:
        state = empty_floor() | {"owed": [50.0, 50.0, 0.0], "lost": [0.0] * 3}
        places, _ = self.FLOOR.places(state, np.array([0, 1, 1, 1, 2]), 3)
        assert places.tolist() == [0, 3, 0]


def test_all_wrong_options_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        PlannedUtility(bonus=-1, floor_ratio=1.5, floor_window_rounds=0, preferred_percentile=0, exploration_decay=-1)
    assert len(caught.value.problems) == 5
