"""Fleets: exact counts, seeded deals, budgets per client; and the clock."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhybrid.errors import ConfigError
from fedhybrid.fleet import Fleet, TierSpec, VirtualClock, make_fleet

TIERS = [
    TierSpec(name="small", budget="25%", device="raspberry-pi-4", share=0.2),
    TierSpec(name="middle", budget="60%", device="phone-mid-range", share=0.3),
    TierSpec(name="large", budget="1 GiB", device="laptop", share=0.5),
]


def test_budgets_and_devices_follow_the_tier() -> None:
    fleet = make_fleet(TIERS, 30, seed=1)
    assert [tier.clients for tier in fleet.tiers] == [6, 9, 15]
    assert np.bincount(fleet.tier).tolist() == [6, 9, 15]
    budgets = fleet.budgets(resident_bytes=100, eager_peak_bytes=1100)
    assert budgets.dtype == np.int64
    assert set(zip(fleet.tier.tolist(), budgets.tolist(), strict=True)) == {(0, 350), (1, 700), (2, 2**30)}
    assert fleet.tiers[2].device.name == "laptop"
    assert len(fleet) == 30


def test_the_seed_decides_who_is_where() -> None:
    def tiers(seed: int) -> list[int]:
        return make_fleet(TIERS, 50, seed).tier.tolist()

    assert tiers(1) == tiers(1) != tiers(2)
    assert tiers(1) != sorted(tiers(1)), "clients are not in the order of tiers"


@given(shares=st.lists(st.integers(1, 1000), min_size=1, max_size=8), clients=st.integers(1, 500))
@settings(max_examples=80, deadline=None)
def test_counts_are_whole_and_near_the_shares(shares: list[int], clients: int) -> None:
    tiers = [TierSpec(name=str(i), budget=1, device="laptop", share=s) for i, s in enumerate(shares)]
    fleet: Fleet = make_fleet(tiers, clients, seed=0)
    counts = [tier.clients for tier in fleet.tiers]
    assert sum(counts) == clients
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - Fraction(clients * share, sum(shares))) < 1


def test_all_problems_of_a_fleet_at_once() -> None:
    tiers = [
        TierSpec(name="a", budget="lots", device="laptop"),
        TierSpec(name="a", budget="10%", device="toaster"),
        TierSpec(name="b", budget="64 GiB", device="raspberry-pi-4", share=-1.0),
    ]
    with pytest.raises(ConfigError) as caught:
        make_fleet(tiers, 0, seed=0)
    words = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 6, words
    for part in ("data.clients", "given twice", "'lots'", "toaster", "share must be", "more than the memory"):
        assert part in words
    with pytest.raises(ConfigError, match="at least one tier"):
        make_fleet([], 3, seed=0)


def test_a_tier_is_checked_whole() -> None:
    with pytest.raises(ConfigError) as caught:
        make_fleet([TierSpec(name="low", budget=-3, device="toaster")], 3, seed=0)
    budget, device = caught.value.problems
    assert budget == "fleet tier 'low': a byte budget must be positive, got -3"
    assert device.startswith("fleet tier 'low': unknown device 'toaster'")


def test_a_million_clients_are_a_few_arrays() -> None:
    fleet = make_fleet(TIERS, 1_000_000, seed=0)
    assert fleet.budgets(resident_bytes=1, eager_peak_bytes=2).nbytes == 8_000_000


def test_the_clock_never_runs_backwards() -> None:
    clock = VirtualClock()
    clock.advance_to(2.5)
    clock.advance_to(2.5)
    assert clock.now_s == 2.5
    with pytest.raises(AssertionError, match="never runs backwards"):
        clock.advance_to(2.0)
