"""The first-come policy: one queue of idle devices."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.selection_parts import candidates, outcome

from fedhybrid.errors import ConfigError
from fedhybrid.protocols import PolicyState
from fedhybrid.records import Candidates
from fedhybrid.selection import FirstCome


def among(*clients: int) -> Candidates:
    """Those are online and idle."""
    rows = np.array(sorted(clients))
    return Candidates(
        **{name: v[rows] if isinstance(v, np.ndarray) else v for name, v in vars(candidates(20)).items()},
    )


def one(view: Candidates, state: PolicyState, draw: int = 0) -> tuple[int, PolicyState]:
    cohort, state = FirstCome().select(view, 1, state, round_index=draw, seed=draw)
    return int(cohort[0]), state


def ended(state: PolicyState, *clients: int, kind: str = "completed") -> PolicyState:
    return FirstCome().observe([outcome(client, 1.0, kind=kind) for client in clients], state)


def test_all_are_served_once_in_an_order_that_the_first_seed_draws() -> None:
    orders = []
    for seed in (0, 1):
        state, order = FirstCome().init(), []
        for draw in range(20):
            cohort, state = FirstCome().select(
                among(*(set(range(20)) - set(order))), 1, state, round_index=draw, seed=seed + draw
            )
            order += cohort.tolist()
        assert sorted(order) == list(range(20))
        orders.append(order)
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_whoever_has_ended_first_is_served_first_after_those_who_never_had_a_task() -> None:
    state = ended(FirstCome().init(), 7, 3, 5)
    served = []
    idle = {3, 5, 7, 11}
    for draw in range(4):
        client, state = one(among(*idle), state, draw)
        served.append(client)
        idle.remove(client)
    assert served == [11, 7, 3, 5]


@pytest.mark.parametrize("kind", ["completed", "crash", "stale"])
def test_an_ended_task_puts_its_device_last_whatever_came_of_it(kind: str) -> None:
    state = ended(FirstCome().init(), 1, 2, 3)
    client, state = one(among(1, 2, 3), state)
    assert client == 1
    state = ended(state, 1, kind=kind)
    assert state["queue"] == [2, 3, 1]


def test_who_is_away_or_unfit_keeps_its_place() -> None:
    state = ended(FirstCome().init(), 1, 2, 3)
    client, state = one(among(2, 3), state)  # 1 is offline
    assert client == 2
    weak = Candidates(**vars(among(1, 3)) | {"round_s": np.array([np.inf, 1.0])})
    client, state = one(weak, state)
    assert client == 3
    client, state = one(among(1, 2, 3), ended(state, 2, 3))
    assert client == 1


def test_a_cohort_is_those_at_the_head() -> None:
    state = ended(FirstCome().init(), *range(19, -1, -1))
    cohort, state = FirstCome().select(candidates(20), 6, state, round_index=3, seed=9)
    assert cohort.tolist() == [14, 15, 16, 17, 18, 19]
    assert state["queue"][:3] == [13, 12, 11]


def test_wrong_gate_is_refused() -> None:
    with pytest.raises(ConfigError, match="memory_gate"):
        FirstCome(memory_gate="all")
