"""What every selection policy of `POLICIES` obeys."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhybrid.protocols import Policy, PolicyState
from fedhybrid.records import Candidates, IntArray, Outcome
from fedhybrid.selection import POLICIES

# Which candidates a policy may choose; a policy without a gate may choose any.
GATES: dict[str, Callable[[Candidates], np.ndarray]] = {
    "exclusion": lambda c: c.budget_bytes >= c.unplanned_bytes,
    "fedhybrid": lambda c: (c.budget_bytes >= c.smallest_bytes) & np.isfinite(c.step_s),
    "uniform": lambda c: np.ones(len(c.client), dtype=bool),
}


def candidates_of(count: int, seed: int = 0) -> Candidates:
    rng = np.random.default_rng(seed)
    budget_bytes = rng.integers(1, 200, count)
    return Candidates(
        client=np.sort(rng.choice(10 * count + 1, size=count, replace=False)),
        tier=rng.integers(0, 3, count),
        budget_bytes=budget_bytes,
        num_samples=rng.integers(1, 50, count),
        unplanned_bytes=100,
        smallest_bytes=40,
        step_s=np.where((budget_bytes < 40) | (rng.random(count) < 0.1), np.inf, 1.0),
        kernel_s=rng.uniform(1e-4, 1e-1, count),
        round_s=np.where((budget_bytes < 40) | (rng.random(count) < 0.1), np.inf, 60.0),
    )


def outcomes_of(cohort: IntArray, round_index: int) -> list[Outcome]:
    """Some with a loss, some without, one with a loss that is no number."""
    losses = [None if i % 3 == 1 else float(c % 7) + 0.5 for i, c in enumerate(cohort)]
    if losses:
        losses[0] = math.inf if round_index % 4 == 3 else losses[0]
    return [
        Outcome(client=int(c), round_index=round_index, squared_loss_mean=loss, num_samples=5, duration_s=1.0)
        for c, loss in zip(cohort, losses, strict=True)
    ]


def play(policy: Policy, rounds: int, count: int, seed: int, *, people: int = 60) -> list[list[int]]:
    """Cohorts of a run whose state goes through JSON after every round."""
    state: PolicyState = policy.init()
    cohorts = []
    for round_index in range(rounds):
        candidates = candidates_of(people, seed=round_index % 3)
        cohort, state = policy.select(candidates, count, state, round_index=round_index, seed=seed)
        state = policy.observe(outcomes_of(cohort, round_index), state)
        state = json.loads(json.dumps(state, allow_nan=False))
        cohorts.append(cohort.tolist())
    return cohorts


@pytest.mark.parametrize("name", sorted(POLICIES))
class TestEveryPolicy:
    @given(people=st.integers(0, 40), count=st.integers(0, 50), seed=st.integers(0, 2**60), rounds=st.integers(1, 5))
    @settings(max_examples=60, deadline=None)
    def test_cohorts_are_distinct_fit_and_as_many_as_there_are(
        self, name: str, people: int, count: int, seed: int, rounds: int
    ) -> None:
        policy = POLICIES[name]()
        state = policy.init()
        for round_index in range(rounds):
            candidates = candidates_of(people, seed=seed % 1000 + round_index)
            fit = candidates.client[GATES[name](candidates)]
            cohort, state = policy.select(candidates, count, state, round_index=round_index, seed=seed)
            assert len(cohort) == min(count, len(fit))
            assert cohort.dtype == np.int64
            assert np.all(np.diff(cohort) > 0), "distinct, ascending"
            assert np.isin(cohort, fit).all()
            state = policy.observe(outcomes_of(cohort, round_index), state)

    def test_the_seed_decides(self, name: str) -> None:
        policy = POLICIES[name]()
        assert play(policy, 12, 5, seed=3) == play(POLICIES[name](), 12, 5, seed=3)
        assert play(policy, 12, 5, seed=3) != play(policy, 12, 5, seed=4)

    def test_rounds_differ(self, name: str) -> None:
        policy = POLICIES[name]()
        candidates, state = candidates_of(60), policy.init()
        cohorts = [
            policy.select(candidates, 5, state, round_index=round_index, seed=0)[0].tolist() for round_index in range(4)
        ]
        assert len({tuple(cohort) for cohort in cohorts}) > 1

    def test_state_through_json_changes_nothing(self, name: str) -> None:
        policy = POLICIES[name]()
        state = policy.init()
        for round_index in range(8):
            candidates = candidates_of(60)
            stored = json.loads(json.dumps(state, allow_nan=False))
            cohort, state = policy.select(candidates, 6, state, round_index=round_index, seed=1)
            again, stored = policy.select(candidates, 6, stored, round_index=round_index, seed=1)
            assert cohort.tolist() == again.tolist()
            assert stored == state
            state = policy.observe(outcomes_of(cohort, round_index), state)

    def test_select_and_observe_leave_the_old_state_as_it_was(self, name: str) -> None:
        policy = POLICIES[name]()
        state = policy.observe(outcomes_of(np.arange(5), 0), policy.init())
        before = json.dumps(state)
        cohort, _ = policy.select(candidates_of(60), 5, state, round_index=1, seed=0)
        policy.observe(outcomes_of(cohort, 1), state)
        assert json.dumps(state) == before

    def test_a_million_candidates_are_chosen_from_within_seconds(self, name: str) -> None:
        policy = POLICIES[name]()
        candidates = candidates_of(1_000_000)
        state = policy.observe(outcomes_of(candidates.client[:20_000], 0), policy.init())
        start = time.perf_counter()
        cohort, _ = policy.select(candidates, 1000, state, round_index=1, seed=0)
        assert time.perf_counter() - start < 3  # takes about 0.1 s; the slack is for busy machines
        assert len(cohort) == 1000


def test_uniform_reaches_all_and_exclusion_only_the_large() -> None:
    candidates = candidates_of(60)
    for name in ("uniform", "exclusion"):
        seen: set[int] = set()
        for round_index in range(200):
            cohort, _ = POLICIES[name]().select(candidates, 6, {}, round_index=round_index, seed=0)
            seen |= set(cohort.tolist())
        assert seen == set(candidates.client[GATES[name](candidates)].tolist())
