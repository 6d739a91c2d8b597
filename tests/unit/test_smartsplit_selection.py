"""The central manager of SmartSplit: who is taken, and why."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.selection_parts import candidates, outcome

from fedhybrid.errors import ConfigError
from fedhybrid.protocols import PolicyState
from fedhybrid.records import Candidates
from fedhybrid.selection import SmartSplitSelection
from fedhybrid.selection.smartsplit import divergence_from_uniform

GREEDY = SmartSplitSelection(exploration_ratio=0.0)


def chosen(view: Candidates, count: int, state: PolicyState | None = None) -> list[int]:
    cohort, _ = GREEDY.select(view, count, state or GREEDY.init(), round_index=0, seed=1)
    return [int(client) for client in cohort]


def test_at_first_the_number_of_samples_counts_and_then_the_loss() -> None:
    view = candidates(num_samples=np.array([10, 40, 20, 10, 10, 30]))
    assert chosen(view, 2) == [1, 5]
    state = GREEDY.observe([outcome(1, 0.01), outcome(5, 0.01), outcome(0, 100.0)], GREEDY.init())
    assert chosen(view, 2, state) == [0, 2]


def test_the_slow_count_less_and_who_holds_nothing_does_not_count() -> None:
    view = candidates(round_s=np.array([60.0, 60.0, 60.0, 240.0, np.inf, 60.0]))
    assert chosen(view, 4) == [0, 1, 2, 5]
    assert chosen(view, 6) == [0, 1, 2, 3, 5]


def test_the_cohort_holds_all_classes_rather_than_the_largest_clients() -> None:
    labels = np.array([[12, 0, 0], [11, 0, 0], [10, 0, 0], [0, 9, 0], [0, 9, 0], [0, 0, 9]])
    view = candidates(num_samples=labels.sum(axis=1), label_counts=labels)
    assert chosen(view, 3) == [0, 3, 5]
    unknown = candidates(num_samples=labels.sum(axis=1), label_counts=np.zeros((6, 0), np.int64))
    assert chosen(unknown, 3) == [0, 1, 2]


def test_some_places_are_left_to_chance() -> None:
    policy = SmartSplitSelection(exploration_ratio=0.5)
    view = candidates(100, num_samples=np.arange(100))
    seen = [policy.select(view, 10, policy.init(), round_index=r, seed=2)[0] for r in range(20)]
    assert all(len(cohort) == 10 for cohort in seen)
    assert all(sum(cohort >= 90) >= 5 for cohort in seen)
    assert len(set(np.concatenate(seen).tolist())) > 50


@given(st.lists(st.lists(st.integers(0, 50), min_size=4, max_size=4), min_size=1, max_size=6))
def test_the_divergence_is_that_of_the_definition(rows: list[list[int]]) -> None:
    found = divergence_from_uniform(np.array(rows))
    for row, divergence in zip(rows, found, strict=True):
        if not sum(row):
            assert divergence == 0
            continue
        p, q = np.array(row) / sum(row), np.full(4, 0.25)
        m = (p + q) / 2
        halves = [sum(x * np.log2(x / y) for x, y in zip(part, m, strict=True) if x > 0) for part in (p, q)]
        assert divergence == pytest.approx(sum(halves) / 2, abs=1e-9)
        assert 0 <= divergence <= 1


def test_options_are_checked_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        SmartSplitSelection(latency_exponent=-1.0, target_percentile=0.0, exploration_ratio=2.0)
    assert len(caught.value.problems) == 3
