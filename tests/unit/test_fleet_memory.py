"""What other apps leave free on a fleet's devices: any moment agrees with the traces, in both scales; and promises."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhybrid.errors import ConfigError
from fedhybrid.fleet import (
    PREDICTORS,
    Fleet,
    FleetMemory,
    MemorySpec,
    TierSpec,
    TraceSpec,
    make_fleet,
)
from fedhybrid.fleet.traces import free_ratios
from fedhybrid.records import FloatArray

MIB = 2**20
HALF_HOUR = TraceSpec(duration_s=1830.0)  # no whole number of windows
HISTORY = 900  # samples of two seconds: thirty windows of a minute, or fifty or so of half a minute
TIERS = [
    TierSpec(name="small", budget="25%", device="raspberry-pi-4"),
    TierSpec(name="large", budget="1 GiB", device="laptop"),
]


def fleet_with(spec: MemorySpec, clients: int = 40, seed: int = 6) -> tuple[Fleet, FleetMemory]:
    fleet = make_fleet(TIERS, clients, seed, memory=spec)
    assert fleet.memory is not None
    return fleet, fleet.memory


@pytest.fixture(scope="module")
def random_memory() -> FleetMemory:
    return fleet_with(MemorySpec(trace=HALF_HOUR, rows=16))[1]


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    path = tmp_path / "free.csv"
    path.write_text("client,time_s,available\na,0,900 MiB\na,3,300 MiB\nb,0,2 GiB\nb,5,1 GiB\nb,8,4 GiB\nb,9,4 GiB\n")
    return path


def test_without_apps_a_device_gives_its_whole_budget() -> None:
    calm = TraceSpec(duration_s=600.0, apps_per_h=0.0, drift_ratio=0.0)
    _, memory = fleet_with(MemorySpec(trace=calm, predictor="last-value"))
    for now_s in (0.0, 12.3, 1e6):
        assert memory.left_bytes(3, now_s, budget_bytes=12345) == 12345
    assert memory.promise(np.array([0, 5]), 7.0, budget_bytes=np.array([100, 2**40])).tolist() == [100, 2**40]


def test_shares_of_the_budget_are_those_of_the_trace(random_memory: FleetMemory) -> None:
    """Each trace is a share of its own highest sample, from some moment of it on, again and again."""
    whole = free_ratios(HALF_HOUR, 16, seed=6, history_samples=HISTORY)[:, HISTORY:]
    shares = whole / whole.max(axis=1, keepdims=True)
    for client in (0, 15, 16, 39):
        left = random_memory.left_over(client, 0.0, 1830.0, budget_bytes=10**9)[1] / 1e9
        assert len(left) == 915
        offset = next(n for n in range(915) if np.allclose(np.roll(shares[client % 16], -n), left, atol=1e-6))
        again = random_memory.left_over(client, 1830.0, 3660.0, budget_bytes=10**9)[1] / 1e9
        assert again.tolist() == left.tolist()
        assert left[0] == pytest.approx(shares[client % 16, offset], abs=1e-6)
    assert max(random_memory.left_over(7, 0.0, 1830.0, budget_bytes=10**9)[1]) == 10**9


def test_clients_that_share_a_trace_are_at_different_moments_of_it(random_memory: FleetMemory) -> None:
    first, second = (random_memory.left_over(client, 0.0, 1830.0, budget_bytes=10**9)[1] for client in (2, 18))
    assert sorted(first.tolist()) == sorted(second.tolist())
    assert first.tolist() != second.tolist()


@settings(max_examples=80)
@given(client=st.integers(0, 39), start_s=st.floats(0, 1e6), length_s=st.floats(0, 5000), at_ratio=st.floats(0, 0.999))
def test_a_walk_and_single_moments_agree(
    random_memory: FleetMemory, client: int, start_s: float, length_s: float, at_ratio: float
) -> None:
    end_s = start_s + length_s
    times_s, left = random_memory.left_over(client, start_s, end_s, budget_bytes=10**9)
    assert times_s[0] == start_s
    assert (np.diff(times_s) > 0).all()
    assert len(times_s) == 1 or times_s[-1] < end_s
    assert len(left) == len(times_s) >= length_s / 2 - 1e-3
    at_s = start_s + at_ratio * length_s
    if abs(at_s / 2 - round(at_s / 2)) > 1e-4:  # at an edge, either side is right
        place = np.searchsorted(times_s, at_s, side="right") - 1
        assert random_memory.left_bytes(client, at_s, budget_bytes=10**9) == left[place]
    for time_s, amount in list(zip(times_s.tolist(), left.tolist(), strict=True))[:: max(len(left) // 5, 1)]:
        assert random_memory.left_bytes(client, time_s, budget_bytes=10**9) == amount


def test_random_traces_in_bytes_are_shares_of_the_devices_memory() -> None:
    fleet, memory = fleet_with(MemorySpec(trace=HALF_HOUR, rows=40, scale="bytes"))
    whole = free_ratios(HALF_HOUR, 40, seed=6, history_samples=HISTORY)[:, HISTORY:]
    for client in (0, 1, 2, 3, 4, 5):
        device_bytes = fleet.tiers[fleet.tier[client]].device.memory_bytes
        left = memory.left_over(client, 0.0, 1830.0, budget_bytes=2**50)[1]
        assert np.sort(left) == pytest.approx(np.sort(whole[client]) * device_bytes, rel=1e-6)
        cap = int(np.median(left))
        capped = memory.left_over(client, 0.0, 1830.0, budget_bytes=cap)[1]
        assert capped.tolist() == np.minimum(left, cap).tolist()
        promised = memory.promise(np.array([client]), 100.0, budget_bytes=np.array([cap]))
        assert promised[0] <= min(cap, left[50]) + 1


def test_files_in_bytes_are_what_they_say(trace_file: Path) -> None:
    _, memory = fleet_with(MemorySpec(file=trace_file, scale="bytes", window_s=2.0, predictor="last-value"), clients=3)
    times_s, left = memory.left_over(1, 4.25, 7.0, budget_bytes=3 * 2**30)
    assert (times_s.tolist(), left.tolist()) == ([4.25, 5.0, 6.0], [2 * 2**30, 2**30, 2**30])
    assert memory.left_bytes(1, 8.5, budget_bytes=3 * 2**30) == 3 * 2**30, "no more than the budget"
    assert [memory.left_bytes(client, 3.0, budget_bytes=2**40) // MIB for client in range(3)] == [300, 2048, 300]
    assert memory.left_bytes(0, 10.0, budget_bytes=2**40) == 900 * MIB, "ten seconds, then again"
    everyone, cap = np.arange(3), np.full(3, 2**40)
    assert (memory.promise(everyone, 5.9, budget_bytes=cap) // MIB).tolist() == [300, 1024, 300]


def test_files_in_shares_of_the_budget(trace_file: Path) -> None:
    spec = MemorySpec(file=trace_file, period_s=0.5, window_s=2.5, predictor="fixed-fraction")
    _, memory = fleet_with(spec, clients=3)
    assert [memory.left_bytes(client, 6.0, budget_bytes=3000) for client in range(3)] == [1000, 750, 1000]
    promised = memory.promise(np.arange(3), 6.0, budget_bytes=np.full(3, 3000))
    assert promised == pytest.approx([800, 600, 800], abs=1)


@pytest.mark.parametrize("name", sorted(PREDICTORS))
def test_promises_are_the_predictors(name: str) -> None:
    """As each device would make them that has watched itself for fifty windows before the run, and then during it."""
    _, memory = fleet_with(MemorySpec(trace=HALF_HOUR, rows=3, predictor=name, window_s=30.0), clients=3)
    known = free_ratios(HALF_HOUR, 3, seed=6, history_samples=750)
    known = np.minimum(known / known[:, 750:].max(axis=1, keepdims=True), 1.0)
    assert memory.left == pytest.approx(known[:, 750:], rel=1e-6)
    predictor = PREDICTORS[name]()
    state, expected = predictor.init(3), []
    for sample in range(750 + 915):
        state = predictor.observe(state, known[:, sample] * 2**40)
        if sample % 15 == 14:
            state = predictor.close_window(state)
        expected.append(predictor.predict(state) / 2**40)
    assert memory.promised == pytest.approx(np.array(expected[750:]).T, rel=1e-5)
    shares = memory.promise(np.arange(3), 0.0, budget_bytes=np.full(3, 2**40)) / 2**40
    for client in range(3):
        left, promised = (np.flatnonzero(np.isclose(t[client], v, atol=1e-9)) for t, v in (
            (memory.left, memory.left_bytes(client, 0.0, budget_bytes=2**40) / 2**40),
            (memory.promised, shares[client]),
        ))  # fmt: skip
        assert set(left) & set(promised), "both are read at one and the same sample"


@pytest.mark.parametrize("scale", ["budget", "bytes"])
@pytest.mark.parametrize("name", sorted(PREDICTORS))
class TestPromisesKnowThePastAlone:
    """Two fleets whose traces agree up to some moment promise the same up to it, whatever comes."""

    def test_of_random_traces(self, name: str, scale: str, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = MemorySpec(trace=HALF_HOUR, rows=8, predictor=name, scale=scale)
        one = fleet_with(spec)[1]

        def with_another_future(*given: Any, **options: Any) -> FloatArray:
            found = free_ratios(*given, **options)
            later = found[:, HISTORY + 400 :]
            found[:, HISTORY + 400 :] = np.where(later < later.max(axis=1, keepdims=True), later * 0.7, later)
            return found

        monkeypatch.setattr("fedhybrid.fleet.memory.free_ratios", with_another_future)
        self.compare(one, fleet_with(spec)[1], upto=400, rows=8)

    def test_of_files(self, name: str, scale: str, tmp_path: Path) -> None:
        rng, found = np.random.default_rng(4), []
        past = [(2 * n, int(amount)) for n, amount in enumerate(rng.integers(10**6, 10**8, 60))]
        for way, future in (("one", (10**6, 10**8)), ("other", (10**5, 10**6))):
            later = [(120 + 2 * n, int(amount)) for n, amount in enumerate(rng.integers(*future, 60))]
            path = tmp_path / f"{way}.csv"
            path.write_text(
                "client,time_s,available\n" + "".join(f"a,{t},{b}\n" for t, b in [*past, (119, 10**8), *later])
            )
            spec = MemorySpec(file=path, period_s=1.0, window_s=10.0, predictor=name, scale=scale)
            found.append(fleet_with(spec, clients=3)[1])
        self.compare(*found, upto=120, rows=1)

    @staticmethod
    def compare(one: FleetMemory, other: FleetMemory, *, upto: int, rows: int) -> None:
        assert one.left.shape == one.promised.shape
        assert len(one.left) == rows
        assert one.left[:, :upto].tolist() == other.left[:, :upto].tolist()
        assert one.promised[:, :upto].tolist() == other.promised[:, :upto].tolist()
        assert (one.left[:, upto:] != other.left[:, upto:]).any(axis=1).all()
        assert (one.promised[:, upto:] != other.promised[:, upto:]).any(axis=1).all()


def test_devices_of_a_file_begin_cold_and_those_of_random_traces_do_not(tmp_path: Path) -> None:
    path = tmp_path / "calm.csv"
    path.write_text("client,time_s,available\na,0,1000\na,999,1000\n")
    _, memory = fleet_with(MemorySpec(file=path, window_s=10.0), clients=1)
    assert memory.promised[0, :49] == pytest.approx(0.5, abs=1e-6), "half of what is available, for five windows"
    assert memory.promised[0, 60:].min() > 0.7
    calm = TraceSpec(duration_s=1830.0, apps_per_h=0.0, drift_ratio=0.0)
    assert fleet_with(MemorySpec(trace=calm))[1].promised.min() > 0.8


def test_windows_of_the_run_begin_one_after_the_other(random_memory: FleetMemory) -> None:
    for window, times_s in enumerate(([0.0, 1e-9, 59.9], [60.0, 60.0 - 1e-9, 119.0], [120.0])):
        for now_s in times_s:
            assert random_memory.window(now_s) == window
            assert random_memory.next_window_s(now_s) == 60.0 * (window + 1)


@pytest.mark.parametrize("window_s", [30.0, 120.0])
def test_promises_at_any_check_in_are_seldom_broken(window_s: float) -> None:
    """Five per cent is the predictor's aim, for windows that begin when the client checks in; others waste or break."""
    broken, used = {}, {}
    for name, options in (("running-minimum", {}), ("last-value", {}), ("fixed-fraction", {"share_ratio": 0.5})):
        spec = MemorySpec(
            trace=TraceSpec(duration_s=7200.0), predictor=name, predictor_options=options, window_s=window_s
        )
        _, memory = fleet_with(spec, clients=100, seed=12)
        rng, late, shares = np.random.default_rng(0), [], []
        for now_s in rng.uniform(0, 1e5, size=15).tolist():
            promised = memory.promise(np.arange(100), now_s, budget_bytes=np.full(100, 10**9))
            for client in range(100):
                lowest = memory.left_over(client, now_s, now_s + window_s, budget_bytes=10**9)[1].min()
                late.append(promised[client] > lowest)
                shares.append(min(promised[client] / lowest, 1.0))
        broken[name], used[name] = np.mean(late), np.mean(shares)
    assert 0 < broken["running-minimum"] <= 0.05 < broken["last-value"]
    assert used["fixed-fraction"] + 0.2 < used["running-minimum"] < used["last-value"]


@pytest.mark.parametrize(
    ("spec", "problems"),
    [
        (
            MemorySpec(scale="bits", rows=0, window_s=math.inf, predictor="runing-minimum", period_s=2.0),
            [
                'fleet.memory.scale must be "budget" or "bytes", got \'bits\'',
                "fleet.memory.rows must be at least 1, got 0",
                "fleet.memory.period_s is for traces of a file",
                "fleet.memory.window_s: a window of inf s must hold whole samples",
                "fleet.memory.predictor: unknown predictor 'runing-minimum'. Did you mean 'running-minimum'?",
            ],
        ),
        (
            MemorySpec(trace=TraceSpec(stay_s=-1.0), predictor_options={"smoothing": 1, "cold_windows": 2.5}),
            [
                "fleet.memory: memory trace: stay_s must be a positive number",
                "fleet.memory.predictor_options: smoothing: predictor 'running-minimum' has no such option.",
                "fleet.memory.predictor_options: cold_windows must be a whole number, got 2.5",
            ],
        ),
        (
            MemorySpec(predictor="fixed-fraction", predictor_options={"share_ratio": 1.5}),
            ["fleet.memory.predictor_options: share_ratio must be in [0, 1], got 1.5"],
        ),
        (
            MemorySpec(file="none.csv", rows=3, trace=TraceSpec()),
            [
                "fleet.memory.rows is for random traces",
                "fleet.memory.trace is for random traces",
                "fleet.memory: memory traces none.csv cannot be read",
            ],
        ),
        (MemorySpec(rows=10**6), ["fleet.memory.rows: 1000000 traces of 7200 samples are more than 100000000"]),
        (MemorySpec(window_s=9 * 3600.0), ["fleet.memory.window_s: a window of 32400 s must"]),
    ],
)
def test_specs_that_make_no_sense(spec: MemorySpec, problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_fleet(TIERS, 10, seed=0, memory=spec)
    assert len(caught.value.problems) == len(problems), caught.value.problems
    for problem, start in zip(caught.value.problems, problems, strict=True):
        assert problem.startswith(start)
