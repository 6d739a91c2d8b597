"""The round-robin policy: turns."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from tests.unit.selection_parts import candidates

from fedhybrid.errors import ConfigError
from fedhybrid.protocols import PolicyState
from fedhybrid.records import Candidates
from fedhybrid.selection import RoundRobin


def cohorts_of(views: list[Candidates], count: int, *, seed: int = 0) -> tuple[list[list[int]], PolicyState]:
    policy, state, cohorts = RoundRobin(), RoundRobin().init(), []
    for round_index, view in enumerate(views):
        # The engine gives another seed each round; the order must not change with it.
        cohort, state = policy.select(view, count, state, round_index=round_index, seed=seed + round_index)
        cohorts.append(cohort.tolist())
    return cohorts, state


def test_everybody_once_before_anybody_twice() -> None:
    cohorts, _ = cohorts_of([candidates(23)] * 40, 5)
    turns = np.zeros(23, int)
    for cohort in cohorts:
        turns[cohort] += 1
        assert turns.max() - turns.min() <= 1
    assert set(turns) == {40 * 5 // 23, 40 * 5 // 23 + 1}


def test_each_pass_has_the_same_order() -> None:
    cohorts, _ = cohorts_of([candidates(20)] * 12, 5)
    assert cohorts[:4] == cohorts[4:8] == cohorts[8:]
    assert sorted(chain(*cohorts[:4])) == list(range(20))


def test_the_order_is_not_that_of_the_numbers() -> None:
    (first,), _ = cohorts_of([candidates(1000)], 100)
    assert 400 < np.mean(first) < 600  # the mean of 100 of 0..999 has a standard deviation of 27
    (other,), _ = cohorts_of([candidates(1000)], 100, seed=1)
    assert first != other


def test_who_was_away_has_the_turn_when_back() -> None:
    away = candidates(20, round_s=np.where(np.arange(20) < 10, np.inf, 1.0))
    cohorts, _ = cohorts_of([away, away, candidates(20), candidates(20), candidates(20)], 4)
    assert min(min(cohort) for cohort in cohorts[:2]) >= 10
    assert sorted(chain(*cohorts)) == list(range(20))


def test_a_pass_that_ends_inside_a_cohort_goes_on_with_others() -> None:
    cohorts, state = cohorts_of([candidates(7)] * 2, 5)
    assert len(set(cohorts[0]) | set(cohorts[1])) == 7
    assert len(state["had_turn"]) == 3, "two of the second cohort ended the first pass"


def test_more_places_than_clients() -> None:
    cohorts, state = cohorts_of([candidates(3)] * 3, 5)
    assert cohorts == [[0, 1, 2]] * 3
    assert state["had_turn"] == [0, 1, 2]


def test_a_wrong_gate_is_refused() -> None:
    with pytest.raises(ConfigError, match="memory_gate must be one of none, planned, unplanned, got 'some'"):
        RoundRobin(memory_gate="some")
