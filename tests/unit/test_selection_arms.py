"""What bandits remember, against a dictionary."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.selection_parts import outcome

from fedhybrid.protocols import PolicyState
from fedhybrid.records import Outcome
from fedhybrid.selection.arms import empty_arms, lookup_arms, updated_arms

COLUMNS = ("squared_loss_mean", "num_samples", "last_round", "times", "completed")
OUTCOMES = st.lists(
    st.builds(
        outcome,
        st.integers(0, 12),
        st.sampled_from([None, 0.0, 1.5, 4.0, math.inf, math.nan]),
        round_index=st.integers(0, 9),
        samples=st.integers(1, 5),
        kind=st.sampled_from(["completed", "crash"]),
    ),
    max_size=12,
)


def plainly(batches: list[list[Outcome]]) -> dict[int, list[float | None]]:
    rows: dict[int, list[float | None]] = {}
    for one in (one for batch in batches for one in batch):
        row = rows.setdefault(one.client, [None, 0, 1, 0, 0])
        if one.squared_loss_mean is not None and math.isfinite(one.squared_loss_mean):
            row[:2] = [one.squared_loss_mean, one.num_samples]
        row[2] = max(row[2] or 1, one.round_index + 1)
        row[3:] = [(row[3] or 0) + 1, (row[4] or 0) + (one.kind == "completed")]
    return rows


def replayed(batches: list[list[Outcome]]) -> PolicyState:
    state = empty_arms()
    for batch in batches:
        before = json.dumps(state)
        new = updated_arms(batch, state)
        assert json.dumps(state) == before, "the old state stays as it was"
        state = new
    return state


@given(batches=st.lists(OUTCOMES, max_size=4))
def test_rows_are_those_of_a_dictionary_in_order_of_the_client(batches: list[list[Outcome]]) -> None:
    state, rows = replayed(batches), plainly(batches)
    assert state["client"] == sorted(rows)
    for place, column in enumerate(COLUMNS):
        assert state[column] == [rows[client][place] for client in sorted(rows)]


@given(batches=st.lists(OUTCOMES, max_size=3), asked=st.sets(st.integers(0, 15)))
def test_looking_up_finds_each_asked_client(batches: list[list[Outcome]], asked: set[int]) -> None:
    rows, clients = plainly(batches), sorted(asked)
    arms = lookup_arms(np.array(clients, dtype=np.int64), replayed(batches))
    untried = [math.nan, 0.0, 1.0, 0.0, 0.0]
    assert arms.tried.tolist() == [client in rows for client in clients]
    for place, column in enumerate(COLUMNS):
        found = getattr(arms, column)
        expected = np.array([rows.get(c, untried)[place] for c in clients], dtype=float)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(getattr(arms.of_tried(), column), found[arms.tried])


def test_observing_touches_what_it_must_only() -> None:
    """One outcome among many tried clients is found by halving, not by walking along all."""
    state = updated_arms([outcome(client, 1.0) for client in range(0, 100_000, 2)], empty_arms())

    class Counted(list[int]):
        reads = 0

        def __getitem__(self, at: object) -> object:  # type: ignore[override]
            Counted.reads += 1
            return super().__getitem__(at)  # type: ignore[call-overload]

    new = updated_arms([outcome(777, 2.0), outcome(778, 3.0)], state | {"client": Counted(state["client"])})
    assert 0 < Counted.reads < 100
    assert new["client"][388:391] == [776, 777, 778]
    assert new["squared_loss_mean"][388:391] == [1.0, 2.0, 3.0]
    assert len(new["times"]) == 50_001


def test_an_empty_lookup() -> None:
    arms = lookup_arms(np.array([], dtype=np.int64), replayed([[outcome(3, 1.0)]]))
    assert arms.tried.tolist() == []
    assert arms.times.tolist() == []


@pytest.mark.parametrize("kind", ["crash", "late", "out_of_memory"])
def test_a_failure_is_a_participation_that_did_not_complete(kind: str) -> None:
    arms = lookup_arms(np.array([4]), replayed([[outcome(4, None, kind=kind), outcome(4, 2.0)]]))
    assert (arms.times.item(), arms.completed.item(), arms.squared_loss_mean.item()) == (2.0, 1.0, 2.0)
