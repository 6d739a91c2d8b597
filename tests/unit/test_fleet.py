"""Fleets: exact counts, seeded deals, budgets and speeds per client, what they weigh; and the clock."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhybrid.errors import ConfigError
from fedhybrid.fleet import (
    AvailabilitySpec,
    Fleet,
    MemorySpec,
    TierSpec,
    TraceSpec,
    VirtualClock,
    check_fleet,
    make_fleet,
)
from fedhybrid.seeds import derive_seed

TIERS = [
    TierSpec(name="small", budget="25%", device="raspberry-pi-4", share=0.2),
    TierSpec(name="middle", budget="60%", device="phone-mid-range", share=0.3),
    TierSpec(name="large", budget="1 GiB", device="laptop", share=0.5),
]
DEAL = [2, 2, 0, 1, 1, 2, 1, 2, 0, 2, 2, 1]  # of twelve clients with seed 1, as the first version dealt them


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
@settings(max_examples=80)
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


def test_the_deal_stays_what_it_was() -> None:
    """Runs of earlier versions are made again with the same devices for the same clients."""
    expected = np.repeat(np.arange(3), [6, 9, 15])
    np.random.default_rng(derive_seed(5, purpose="fleet")).shuffle(expected)
    assert make_fleet(TIERS, 30, seed=5).tier.tolist() == expected.tolist()
    assert make_fleet(TIERS, 12, seed=1).tier.tolist() == DEAL
    more = make_fleet(
        [TierSpec(name=t.name, budget=t.budget, device=t.device, share=t.share, speed_spread=0.2) for t in TIERS],
        12,
        seed=1,
        memory=MemorySpec(trace=TraceSpec(duration_s=600.0)),
        availability=AvailabilitySpec(kind="random", on_ratio=0.5),
    )
    assert more.tier.tolist() == DEAL


def test_budgets_of_some_are_those_of_all() -> None:
    drawn = TierSpec(name="drawn", budget={"distribution": "uniform", "low": "10%", "high": "90%"}, device="laptop")
    fleet = make_fleet([*TIERS, drawn], 400, seed=3)
    some = np.array([399, 0, 7, 7, 120])
    every = fleet.budgets(resident_bytes=1000, eager_peak_bytes=10**7)
    assert fleet.budget_bytes(some, resident_bytes=1000, eager_peak_bytes=10**7).tolist() == every[some].tolist()
    none = fleet.budget_bytes(np.array([], dtype=np.int64), resident_bytes=1, eager_peak_bytes=2)
    assert (none.dtype, none.tolist()) == (np.int64, [])
    shares = (every[fleet.tier == 3] - 1000) / (10**7 - 1000)
    assert 0.1 - 1e-6 <= shares.min() < 0.2
    assert 0.8 < shares.max() <= 0.9
    assert len(np.unique(shares)) > 195


def test_devices_of_one_profile_differ_in_speed() -> None:
    tiers = [
        TierSpec(name="alike", budget="50%", device="laptop"),
        TierSpec(name="hot or old", budget="50%", device="laptop", speed_spread=0.3),
    ]
    fleet = make_fleet(tiers, 20_000, seed=2)
    factors = fleet.speed_factor(np.arange(20_000))
    assert (factors[fleet.tier == 0] == 1.0).all()
    logs = np.log(factors[fleet.tier == 1])
    assert np.median(logs) == pytest.approx(0.0, abs=0.01)
    assert logs.std() == pytest.approx(0.3, rel=0.03)
    assert fleet.speed_factor(np.array([17, 4])).tolist() == factors[[17, 4]].tolist()
    assert make_fleet(tiers[:1], 3, seed=2).speed_factor(np.array([1, 2])).tolist() == [1.0, 1.0]


def test_problems_of_all_parts_at_once_and_without_making_anything() -> None:
    tiers = [
        TierSpec(
            name="weak", budget={"distribution": "uniform", "low": "lots"}, device="raspberry-pi-4", speed_spread=-1
        )
    ]
    memory, availability = MemorySpec(window_s=0.0, rows=0), AvailabilitySpec(kind="duty", on_s=-5.0)
    with pytest.raises(ConfigError) as caught:
        make_fleet(tiers, 3, seed=0, memory=memory, availability=availability)
    expected = [
        "fleet tier 'weak': speed_spread must be in [0, 5], got -1",
        "fleet tier 'weak': budget.high is missing: the distribution 'uniform' needs it",
        "fleet tier 'weak': budget.low: a byte budget must look like",
        "fleet.memory.rows must be at least 1, got 0",
        "fleet.memory.window_s: a window of 0 s must hold whole samples (2 s each)",
        "fleet.availability.off_s is missing: kind 'duty' needs it",
        "fleet.availability.on_s must be a positive number of seconds, got -5.0",
    ]
    for problem, start in zip(caught.value.problems, expected, strict=True):
        assert problem.startswith(start)
    with pytest.raises(ConfigError) as again:
        check_fleet(tiers, 3, memory=memory, availability=availability)
    assert again.value.problems == caught.value.problems
    check_fleet(TIERS, 10**9)


def array_bytes(part: object, seen: set[int]) -> int:
    """Of all arrays that a fleet holds, each counted once."""
    if isinstance(part, np.ndarray):
        assert part.base is None, "a view would keep more alive than it shows"
        new = id(part) not in seen
        seen.add(id(part))
        return part.nbytes if new else 0
    if isinstance(part, tuple | list):
        return sum(array_bytes(each, seen) for each in part)
    if is_dataclass(part):
        return sum(array_bytes(getattr(part, field.name), seen) for field in fields(part))
    return 0


def test_a_million_clients_are_a_few_arrays() -> None:
    """Two bytes for the tier, four for the drawn budget, four for the speed; the rest is 256 traces and promises."""
    tiers = [
        TierSpec(
            name=name,
            budget={"distribution": "lognormal", "median": "1 GB", "spread": 0.4},
            device=device,
            speed_spread=0.2,
        )
        for name, device in (("a", "raspberry-pi-4"), ("b", "phone-mid-range"), ("c", "laptop"))
    ]
    fleet = make_fleet(
        tiers,
        1_000_000,
        seed=0,
        memory=MemorySpec(trace=TraceSpec(duration_s=1200.0)),
        availability=AvailabilitySpec(kind="duty", on_s=600.0, off_s=1800.0, jitter_ratio=0.3),
    )
    assert array_bytes(fleet, set()) == 1_000_000 * (2 + 4 + 4) + 2 * 256 * 600 * 4
    usual = TraceSpec()
    assert 10_000_000 + 2 * 256 * int(usual.duration_s / usual.period_s) * 4 < 40_000_000, "with traces of usual length"
    assert fleet.budgets(resident_bytes=1, eager_peak_bytes=2).nbytes == 8_000_000


def test_the_clock_never_runs_backwards() -> None:
    clock = VirtualClock()
    clock.advance_to(2.5)
    clock.advance_to(2.5)
    assert clock.now_s == 2.5
    with pytest.raises(AssertionError, match="never runs backwards"):
        clock.advance_to(2.0)
