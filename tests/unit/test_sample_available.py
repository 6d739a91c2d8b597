"""Samples of those that are online: uniform, without repeats, and cheap however large the fleet."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhybrid.fleet import AvailabilitySpec, Fleet, TierSpec, make_fleet, sample_available
from fedhybrid.records import IntArray

TIERS = [TierSpec(name="all", budget="40%", device="laptop")]


def fleet_of(clients: int, on_ratio: float | None = None) -> Fleet:
    spec = None if on_ratio is None else AvailabilitySpec(kind="random", on_ratio=on_ratio, slot_s=60.0)
    return make_fleet(TIERS, clients, seed=1, availability=spec)


def free_clients(fleet: Fleet, now_s: float, busy: set[int]) -> set[int]:
    everyone = np.arange(len(fleet))
    return set(everyone[fleet.available(everyone, now_s)].tolist()) - busy


@settings(max_examples=100)
@given(
    clients=st.integers(1, 3000),
    on_ratio=st.one_of(st.none(), st.floats(0.01, 0.99)),
    count=st.integers(0, 400),
    now_s=st.floats(0, 1e6),
    data=st.data(),
)
def test_samples_are_free_clients_once_each_in_order(
    clients: int, on_ratio: float | None, count: int, now_s: float, data: st.DataObject
) -> None:
    fleet = fleet_of(clients, on_ratio)
    busy = data.draw(st.sets(st.integers(0, clients - 1), max_size=50))
    found = sample_available(fleet, count, now_s, np.random.default_rng(2), busy)
    free = free_clients(fleet, now_s, busy)
    assert found.dtype == np.int64
    assert (np.diff(found) > 0).all()
    assert set(found.tolist()) <= free
    assert len(found) == min(count, len(free))
    assert found.tolist() == sample_available(fleet, count, now_s, np.random.default_rng(2), busy).tolist()


@pytest.mark.parametrize(("clients", "count"), [(3, 2), (400, 3)], ids=["all are looked at", "numbers are tried"])
def test_every_set_is_as_likely_as_any_other(clients: int, count: int) -> None:
    """Of five that are free, or of three: all sets of `count`, counted over 3,000 samples."""
    fleet = fleet_of(clients)
    free = [0, 1, 2] if clients == 3 else [3, 77, 200, 201, 399]
    busy = frozenset(range(clients)) - set(free)
    rng = np.random.default_rng(0)
    sets = [tuple(sample_available(fleet, count, 0.0, rng, busy).tolist()) for _ in range(3000)]
    expected = list(combinations(free, count))
    counts = [sets.count(each) for each in expected]
    assert sum(counts) == 3000
    assert counts == pytest.approx([3000 / len(expected)] * len(expected), rel=0.2)


def chi_square(samples: list[IntArray], free: list[int]) -> float:
    """Distance of the clients' counts from equal ones, in standard deviations of what chance does."""
    counts = np.bincount(np.concatenate(samples), minlength=max(free) + 1)[free]
    expected = counts.mean()
    share = len(samples[0]) / len(free)
    return float(((counts - expected) ** 2 / expected).sum() / (1 - share) - len(free)) / float(np.sqrt(2 * len(free)))


@pytest.mark.parametrize("on_ratio", [0.9, 0.5, 0.1])
@pytest.mark.parametrize("count", [5, 40])
def test_every_client_comes_as_often_as_any_other(on_ratio: float, count: int) -> None:
    fleet, busy = fleet_of(1000, on_ratio), frozenset(range(0, 1000, 7))
    rng = np.random.default_rng(3)
    samples = [sample_available(fleet, count, 30.0, rng, busy) for _ in range(1000)]
    assert abs(chi_square(samples, sorted(free_clients(fleet, 30.0, set(busy))))) < 4.5


def test_the_work_does_not_grow_with_the_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: how many clients are asked whether they are online."""
    asked: list[int] = []
    usual = Fleet.available
    monkeypatch.setattr(
        Fleet, "available", lambda fleet, clients, now_s: asked.append(len(clients)) or usual(fleet, clients, now_s)
    )
    for clients, on_ratio, most in ((10**6, 0.5, 3000), (10**5, 0.5, 3000), (10**6, 0.05, 35_000)):
        asked.clear()
        fleet = fleet_of(clients, on_ratio)
        assert len(sample_available(fleet, 1000, 5.0, np.random.default_rng(0), frozenset(range(100)))) == 1000
        assert 1000 <= sum(asked) < most
