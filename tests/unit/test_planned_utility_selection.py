"""The planned-utility policy: its utility, its rounds' lengths, its floor, and all in a small world of four tiers."""

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


SETTLED: dict[str, Any] = {"speed_penalty_least": 1.0}  # the exponent never falls, so the floor is whole at once


class TestWorld:
    def test_every_tier_has_its_floor_and_fast_informative_clients_are_preferred(self) -> None:
        played = play(PlannedUtility(floor_ratio=0.5, **SETTLED))
        assert played.completed.min() >= 0.49
        assert played.worst_windows.min() >= 0.35  # any 60 rounds, less what is being saved up for a burst
        assert played.completed[0] > 1.2
        assert played.informative_ratio > 0.38  # of 0.3

    def test_without_a_floor_slow_tiers_are_hardly_heard(self) -> None:
        assert play(PlannedUtility(floor_ratio=0.0)).worst_windows.min() < 0.25

    def test_a_full_floor_is_participation_in_proportion(self) -> None:
        assert play(PlannedUtility(floor_ratio=1.0, **SETTLED)).completed == pytest.approx(np.ones(4), abs=0.1)

    def test_places_paid_together_make_rounds_shorter_at_the_same_participation(self) -> None:
        together, singly = play(PlannedUtility()), play(PlannedUtility(floor_burst_ratio=0.0))
        assert together.completed == pytest.approx(singly.completed, abs=0.15)
        assert together.longest_s < 0.7 * singly.longest_s

    def test_rounds_are_shorter_than_where_time_does_not_count(self) -> None:
        heedless = play(PlannedUtility(speed_penalty=0.0, speed_penalty_least=0.0))
        assert play(PlannedUtility()).longest_s < 0.6 * heedless.longest_s

    def test_failed_places_are_owed_again_but_not_for_ever(self) -> None:
        assert play(PlannedUtility(floor_ratio=0.5, **SETTLED), failing=0.3).completed[3] >= 0.49
        hopeless = play(PlannedUtility(floor_ratio=0.5, **SETTLED), failing=1.0)
        assert hopeless.completed[3] == 0
        assert hopeless.asked[3] <= 1.05

    def test_the_floor_holds_where_tasks_are_given_out_one_at_a_time(self) -> None:
        assert play(PlannedUtility(floor_ratio=0.5), rounds=3000, count=1).completed.min() >= 0.48


def utilities_of(outcomes: list[Any], *, round_index: int = 0, **options: Any) -> list[float]:
    policy = PlannedUtility(**{"clip_percentile": 100.0} | options)
    arms = lookup_arms(np.arange(CLIENTS), policy.observe(outcomes, policy.init()))
    return policy.utilities(arms, np.array([10, 10, 10, 10, 40, 10]), round_index).tolist()


class TestUtility:
    # Losses 0, 1, 2, 3, 1 (of four times the samples) and unknown: it stands at the median, 1, and has failed once.
    TRIED = [outcome(c, loss**2) for c, loss in enumerate([0.0, 1.0, 2.0, 3.0, 1.0])] + [outcome(5, None, kind="crash")]

    def test_it_is_loss_times_samples_plus_bonus_times_success(self) -> None:
        assert utilities_of(self.TRIED) == pytest.approx([0, 0.25, 0.5, 0.75, 1.0, 0.25 / 2])
        bonus = 0.1 * np.sqrt(2 * np.log(20))
        assert utilities_of(self.TRIED, round_index=19)[3] == pytest.approx(0.75 + bonus)

    def test_samples_may_count_less(self) -> None:
        assert utilities_of(self.TRIED, size_power=0.0) == pytest.approx([0, 1 / 3, 2 / 3, 1.0, 1 / 3, 1 / 6])

    def test_who_was_never_tried_is_taken_for_one_of_the_best(self) -> None:
        assert utilities_of(self.TRIED[:3]) == pytest.approx([0, 0.5, 1, 1, 1, 1])  # 4 has more samples: clipped
        assert utilities_of([]) == pytest.approx([0.25, 0.25, 0.25, 0.25, 1, 0.25])


def drawn(policy: PlannedUtility, found: Any, count: int, state: Any, *, draws: int = 2000) -> np.ndarray:
    """How often each client is in a cohort."""
    seen = np.zeros(len(found.client))
    for seed in range(draws):
        seen[policy.select(found, count, state, round_index=0, seed=seed)[0]] += 1
    return seen / draws


def test_memory_counts_through_time_only() -> None:
    policy = PlannedUtility(floor_ratio=0.0)
    state = policy.observe(all_tried([4.0, 1.0, 4.0, 1.0, 4.0, 4.0]), policy.init())
    found = candidates(
        budget_bytes=np.array([41, 100, 41, 100, 41, 41]),
        kernel_s=np.array([9.0, 1, 9, 1, 9, 9]),
        round_s=np.array([60.0, 60, 60, 60, np.inf, 600.0]),
    )
    assert drawn(policy, found, 1, state) == pytest.approx(np.array([2, 1, 2, 1, 0, 0]) / 6, abs=0.04)
    everybody, _ = policy.select(found, 6, state, round_index=1, seed=0)
    assert everybody.tolist() == [0, 1, 2, 3, 5]


def test_equal_times_leave_the_utility_alone() -> None:
    policy = PlannedUtility(floor_ratio=0.0)
    state = policy.observe(all_tried([1.0, 9.0, 4.0, 16.0, 25.0, 0.0]), policy.init())
    cohorts = {
        tuple(policy.select(candidates(round_s=np.full(CLIENTS, s)), 2, state, round_index=1, seed=0)[0].tolist())
        for s in (0.0, 1e-9, 60.0, 1e9)
    }
    assert len(cohorts) == 1


@pytest.mark.parametrize(("slow_loss", "long"), [(1.5, False), (5.0, True)])
def test_a_round_is_long_where_slow_clients_teach_enough(slow_loss: float, long: bool) -> None:
    # Fast ones have a loss of 1 and take 10 s, slow ones 30 s: by three times the loss, and the draw prefers them.
    policy = PlannedUtility(floor_ratio=0.0)
    losses: list[float | None] = [1.0] * 10 + [slow_loss**2] * 10
    found = candidates(20, round_s=np.repeat([10.0, 30.0], 10))
    shares = drawn(policy, found, 4, policy.observe(all_tried(losses), policy.init()), draws=300)
    assert (shares[10:].sum() > 0) == long
    if long:
        assert shares[10:].sum() > 3 * shares[:10].sum()


def test_a_long_round_of_the_floor_is_open_to_all() -> None:
    policy = PlannedUtility(floor_ratio=1.0, floor_burst_ratio=0.0, speed_penalty_least=1.0)
    found = candidates(20, tier=np.repeat([0, 1], 10), round_s=np.repeat([10.0, 30.0], 10))
    state = policy.init() | {"owed": [-3.0, 0.0], "lost": [0.0, 0.0]}
    shares = drawn(policy, found, 6, state, draws=300)
    assert shares[10:].sum() > 3.5, "three by the floor, and slow ones among the others"
    assert shares[:10].min() > 0


def test_time_counts_less_from_round_to_round() -> None:
    policy = PlannedUtility(floor_ratio=0.0, speed_half_life_rounds=5, speed_penalty_least=0.0)
    found = candidates(20, round_s=np.repeat([10.0, 30.0], 10))
    state = policy.observe(all_tried([1.0] * 10 + [2.25] * 10), policy.init())

    def slow_ones(round_index: int) -> int:
        cohorts = [policy.select(found, 4, state, round_index=round_index, seed=seed)[0] for seed in range(50)]
        return int(sum((cohort >= 10).sum() for cohort in cohorts))

    assert slow_ones(0) == 0, "thrice the time for one and a half of the loss"
    assert slow_ones(20) > 100, "a sixteenth of the exponent is left"


def test_the_floor_grows_as_time_counts_less() -> None:
    policy = PlannedUtility(floor_ratio=1.0, floor_burst_ratio=0.0)
    found = candidates(20, tier=np.repeat([0, 1], 10), round_s=np.repeat([10.0, 30.0], 10))
    learnt, slow = policy.observe(all_tried([1.0] * 20), policy.init()), []
    state = learnt
    for round_index in range(100):
        cohort, state = policy.select(found, 4, state, round_index=round_index, seed=round_index)
        state = policy.observe([outcome(int(c), 1.0, round_index=round_index) for c in cohort], state)
        slow.append(int((cohort >= 10).sum()))
    assert sum(slow[:4]) == 0, "all teach the same, and the first rounds are fast ones"
    assert 0 < sum(slow[4:24]) < sum(slow[24:44])
    assert sum(slow[-20:]) >= 38, "two of four places, when time counts least"
    unmoved = PlannedUtility(floor_ratio=1.0, floor_burst_ratio=0.0, speed_penalty_least=1.0)
    cohort, _ = unmoved.select(found, 4, learnt, round_index=0, seed=0)
    assert (cohort >= 10).sum() == 2, "where the exponent is always the same, so is the floor"


@pytest.mark.parametrize(
    ("round_index", "penalty", "least", "claim"),
    [
        (0, 2.0, 0.5, 0.0),
        (24, 2.0, 0.5, 0.6 * 4 * 0.5 * (2 - 1) / 1.5),  # half of the exponent is left
        (48, 2.0, 0.5, 0.6 * 4 * 0.5),  # it is at its least
        (480, 2.0, 0.5, 0.6 * 4 * 0.5),
        (0, 0.7, 0.7, 0.6 * 4 * 0.5),  # where it never falls, the floor is whole
        (0, 0.0, 0.0, 0.6 * 4 * 0.5),
    ],
)
def test_what_a_tier_is_owed_by_how_much_time_counts(
    round_index: int, penalty: float, least: float, claim: float
) -> None:
    policy = PlannedUtility(speed_penalty=penalty, speed_penalty_least=least)
    found = candidates(20, tier=np.repeat([0, 1], 10), round_s=np.repeat([10.0, 1000.0], 10))
    cohort, state = policy.select(found, 4, policy.init(), round_index=round_index, seed=0)
    got = np.bincount((cohort >= 10).astype(int), minlength=2)
    assert state["owed"] == pytest.approx(claim - got)


def test_with_the_defaults_every_tier_is_heard_in_a_hundred_rounds() -> None:
    played = play(PlannedUtility(), rounds=100)
    assert played.completed.min() >= 0.4
    assert played.completed[0] > 1.2
    found = candidates(50, tier=np.repeat(np.arange(5), 10), round_s=np.repeat([1.0, 1.0, 1.0, 1.0, 1e6], 10))
    policy = PlannedUtility()
    state = policy.init()
    for round_index in range(40):
        cohort, state = policy.select(found, 10, state, round_index=round_index, seed=round_index)
        state = policy.observe([outcome(int(c), 1.0, round_index=round_index) for c in cohort], state)
        if cohort.max() >= 40:
            break
    assert round_index == 16, "as the guide says of a tier that nobody would choose"


def test_of_many_different_times_some_lengths_are_tried() -> None:
    rng = np.random.default_rng(0)
    found = candidates(5000, round_s=rng.uniform(1.0, 100.0, 5000))
    policy = PlannedUtility(floor_ratio=0.0)
    cohort, _ = policy.select(found, 10, policy.init(), round_index=0, seed=0)
    assert found.round_s[cohort].max() <= np.quantile(found.round_s, 2 / 64)


def test_places_of_the_floor_go_to_those_who_took_part_least() -> None:
    policy = PlannedUtility(floor_ratio=1.0, floor_burst_ratio=0.0, speed_penalty_least=1.0)
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
            places, state = floor.places(state, tiers, np.ones(len(tiers)), 8)
            paid.append(int(places[1]))
            state = floor.chosen(state, np.arange(8), np.repeat([0, 1], [8 - places[1], places[1]]))
            state = floor.observed(state, [outcome(client, 1.0) for client in range(8)])
        return paid

    def test_it_saves_up_for_a_burst(self) -> None:
        # Each tier is owed 2 of 8 places a round; half a cohort is 4.
        assert self.paid(self.FLOOR, np.repeat([0, 1], [8, 8]), 7) == [0, 4, 0, 4, 0, 4, 0]

    def test_a_long_round_pays_those_who_take_no_longer(self) -> None:
        tiers, round_s = np.repeat([0, 1, 2], 8), np.repeat([10.0, 20.0, 30.0], 8)
        for owed, expected in (
            ([2, 3, 0], [3, 4, 0]),
            ([2, 3, 9], [0, 0, 8]),
            ([2, 0, 3], [3, 1, 4]),
            ([2, 2, 2], [0, 0, 0]),
        ):
            state = empty_floor() | {"owed": [float(each) for each in owed], "lost": [0.0] * 3}
            places, _ = self.FLOOR.places(state, tiers, round_s, 8)
            assert places.tolist() == expected, owed

    def test_a_small_tier_waits_no_longer_than_the_window(self) -> None:
        patient = ParticipationFloor(floor_ratio=0.5, burst_ratio=1.0, window_rounds=4)
        # Owed one place of 8 a round, while a burst is 8.
        assert self.paid(patient, np.repeat([0, 1], [30, 10]), 8) == [0, 0, 0, 4, 0, 0, 0, 4]

    def test_a_failure_is_owed_again_at_most_as_fast_as_the_claim(self) -> None:
        tiers = np.zeros(10, np.int64)
        _, state = self.FLOOR.places(empty_floor(), tiers, np.ones(10), 4)
        state = self.FLOOR.chosen(state, np.arange(4), np.zeros(4, np.int64))
        assert state["owed"] == [-2.0]
        assert state["out"] == [[0, 0], [1, 0], [2, 0], [3, 0]]
        ends = [outcome(c, None, kind="crash") for c in (0, 1, 2)] + [outcome(3, 1.0), outcome(9, None, kind="late")]
        state = self.FLOOR.observed(state, ends)
        assert (state["lost"], state["out"]) == ([3.0], []), "client 9 was not chosen by this policy"
        _, state = self.FLOOR.places(state, tiers, np.ones(10), 4)
        assert (state["owed"], state["lost"]) == ([2.0], [1.0])

    def test_clients_with_a_task_count_as_part_of_their_tier(self) -> None:
        state = empty_floor() | {"owed": [0.0, 0.0], "lost": [0.0, 0.0], "out": [[90, 1], [91, 1], [92, 1]]}
        _, state = self.FLOOR.places(state, np.zeros(3, np.int64), np.ones(3), 2)
        assert state["owed"] == [0.5, 0.5]

    def test_nobody_is_owed_more_than_there_is(self) -> None:
        state = empty_floor() | {"owed": [50.0, 50.0, 0.0], "lost": [0.0] * 3}
        places, _ = self.FLOOR.places(state, np.array([0, 1, 1, 1, 2]), np.ones(5), 3)
        assert places.tolist() == [0, 3, 0]


def test_all_wrong_options_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        PlannedUtility(
            bonus=-1,
            floor_ratio=1.5,
            floor_window_rounds=0,
            clip_percentile=0,
            size_power=-1,
            speed_half_life_rounds=0,
        )
    assert len(caught.value.problems) == 6


def test_time_that_is_not_to_count_is_said_in_both_options() -> None:
    """A penalty of 0 alone would leave the least one."""
    with pytest.raises(ConfigError, match=r"speed_penalty_least must be at most speed_penalty, which is 0.0, got 0.2"):
        PlannedUtility(speed_penalty=0.0)
    policy = PlannedUtility(speed_penalty=0.0, speed_penalty_least=0.0, floor_ratio=0.0)
    found = candidates(20, round_s=np.repeat([10.0, 1e6], 10))
    state = policy.observe(all_tried([1.0] * 10 + [1.21] * 10), policy.init())
    assert drawn(policy, found, 4, state, draws=50)[10:].sum() > 0
