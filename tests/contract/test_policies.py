"""What every selection policy of `POLICIES` obeys."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhybrid.protocols import Policy, PolicyState
from fedhybrid.records import COMPLETED, Candidates, IntArray, Outcome
from fedhybrid.selection import POLICIES

# Which candidates a policy may choose; a policy without a gate may choose any.
GATES: dict[str, Callable[[Candidates], np.ndarray]] = {
    "exclusion": lambda c: c.budget_bytes >= c.unplanned_bytes,
    "fedhybrid": lambda c: (c.budget_bytes >= c.smallest_bytes) & np.isfinite(c.step_s),
    "first-come": lambda c: np.isfinite(c.round_s),
    "oort": lambda c: c.budget_bytes >= c.unplanned_bytes,
    "planned-utility": lambda c: np.isfinite(c.round_s),
    "power-of-choice": lambda c: c.num_samples > 0,
    "round-robin": lambda c: np.isfinite(c.round_s),
    "smartsplit": lambda c: np.isfinite(c.round_s),
    "uniform": lambda c: np.ones(len(c.client), dtype=bool),
}

# The columns that a policy may ask for: each costs a pass over the fleet.
COLUMNS: dict[str, set[str]] = {
    "exclusion": {"client", "budget_bytes"},
    "fedhybrid": {"client", "budget_bytes", "step_s", "kernel_s"},
    "first-come": {"client", "round_s"},
    "oort": {"client", "budget_bytes", "round_s"},
    "planned-utility": {"client", "tier", "round_s", "num_samples"},
    "power-of-choice": {"client", "num_samples"},
    "round-robin": {"client", "round_s"},
    "smartsplit": {"client", "round_s", "num_samples", "label_counts"},
    "uniform": set(),
}


def candidates_of(count: int, seed: int = 0) -> Candidates:
    rng = np.random.default_rng(seed)
    budget_bytes = rng.integers(1, 200, count)
    return Candidates(
        client=np.sort(rng.choice(10 * count + 1, size=count, replace=False)),
        tier=rng.integers(0, 3, count),
        budget_bytes=budget_bytes,
        num_samples=rng.integers(0, 50, count),
        label_counts=rng.integers(0, 9, (count, 4)),
        unplanned_bytes=100,
        smallest_bytes=40,
        step_s=np.where((budget_bytes < 40) | (rng.random(count) < 0.1), np.inf, 1.0),
        kernel_s=rng.uniform(1e-4, 1e-1, count),
        round_s=np.where((budget_bytes < 40) | (rng.random(count) < 0.1), np.inf, 60.0),
    )


class Watched:
    """A view that allows some columns and fails where another is asked for."""

    def __init__(self, candidates: Candidates, allowed: set[str]) -> None:
        self._candidates, self._allowed = candidates, allowed

    def __getattr__(self, name: str) -> Any:
        assert name in self._allowed | {"sample", "unplanned_bytes", "smallest_bytes"}, f"column {name} was asked for"
        return getattr(self._candidates, name)

    def __len__(self) -> int:
        return len(self._candidates)


def outcomes_of(cohort: IntArray, round_index: int) -> list[Outcome]:
    """Some with a loss, some without, one with a loss that is no number."""
    losses = [None if i % 3 == 1 else float(c % 7) + 0.5 for i, c in enumerate(cohort)]
    if losses:
        losses[0] = math.inf if round_index % 4 == 3 else losses[0]
    return [
        Outcome(
            client=int(c),
            round_index=round_index,
            squared_loss_mean=loss,
            num_samples=5,
            duration_s=1.0,
            kind="crash" if loss is None else COMPLETED,
        )
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
    @settings(max_examples=60)
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
        cohorts = set()
        for round_index in range(4):
            cohort, state = policy.select(candidates, 5, state, round_index=round_index, seed=0)
            cohorts.add(tuple(cohort.tolist()))
        assert len(cohorts) > 1

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

    def test_an_asynchronous_run_asks_for_one_at_a_time(self, name: str) -> None:
        policy = POLICIES[name]()
        found, state, asked = candidates_of(60), policy.init(), []
        for draw in range(30):
            idle = np.flatnonzero(~np.isin(found.client, asked[-10:]))  # ten tasks are out at any time
            view = Candidates(
                **{k: v[idle] if isinstance(v, np.ndarray) else v for k, v in vars(found).items()},
            )
            cohort, state = policy.select(view, 1, state, round_index=draw, seed=draw)
            assert cohort[0] in view.client[GATES[name](view)]
            asked += cohort.tolist()
            if draw >= 10:
                state = policy.observe(outcomes_of(np.array(asked[draw - 10 : draw - 9]), draw - 10), state)
        assert len(asked) == 30

    def test_it_asks_for_its_columns_only(self, name: str) -> None:
        policy = POLICIES[name]()
        state = policy.init()
        for round_index in range(4):
            view = Watched(candidates_of(60), COLUMNS[name])
            cohort, state = policy.select(view, 6, state, round_index=round_index, seed=0)
            state = policy.observe(outcomes_of(cohort, round_index), state)

    def test_of_a_million_candidates_it_remembers_those_that_it_tried(self, name: str) -> None:
        policy = POLICIES[name]()
        candidates = candidates_of(1_000_000)
        state = policy.observe(outcomes_of(candidates.client[:10_000], 0), policy.init())
        tracemalloc.start()
        cohort, state = policy.select(candidates, 1000, state, round_index=1, seed=0)
        state = policy.observe(outcomes_of(cohort, 1), state)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(cohort) == 1000
        assert peak_bytes < 128 * 2**20  # a dozen columns; most policies take less than half
        assert len(json.dumps(state)) < 11_000 * 60

    def test_where_nobody_is_fit_nobody_is_chosen(self, name: str) -> None:
        policy = POLICIES[name]()
        unable = candidates_of(0)
        for _ in range(2):
            cohort, state = policy.select(unable, 5, policy.init(), round_index=0, seed=0)
            assert len(cohort) == 0
            assert json.loads(json.dumps(policy.observe([], state), allow_nan=False)) is not None
            none = {"budget_bytes": np.ones(30, np.int64), "num_samples": np.zeros(30, np.int64)}
            never = {"step_s": np.full(30, np.inf), "round_s": np.full(30, np.inf)}
            unable = Candidates(**vars(candidates_of(30)) | none | never)
            if GATES[name](unable).any():  # a policy without a gate
                return


def test_uniform_reaches_all_and_exclusion_only_the_large() -> None:
    candidates = candidates_of(60)
    for name in ("uniform", "exclusion"):
        seen: set[int] = set()
        for round_index in range(200):
            cohort, _ = POLICIES[name]().select(candidates, 6, {}, round_index=round_index, seed=0)
            seen |= set(cohort.tolist())
        assert seen == set(candidates.client[GATES[name](candidates)].tolist())
