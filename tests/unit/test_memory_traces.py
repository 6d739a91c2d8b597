"""Memory traces: made from a seed, or read from files; clear words about wrong ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedhybrid.errors import ConfigError
from fedhybrid.fleet import MemoryTraces, TraceSpec, load_traces, make_traces

MIB = 2**20
HOUR = TraceSpec(duration_s=3600.0)


def test_a_trace_depends_on_seed_number_and_memory_alone() -> None:
    few = make_traces(HOUR, np.full(3, 2**30), seed=1).available_bytes
    many = make_traces(HOUR, np.array([2**30] * 3 + [2**32] * 3), seed=1).available_bytes
    assert few.shape == (3, 1800)
    assert few.tolist() == many[:3].tolist()
    assert not np.array_equal(few[0], few[1])
    assert not np.array_equal(few, make_traces(HOUR, np.full(3, 2**30), seed=2).available_bytes)
    twice = make_traces(HOUR, np.full(3, 2**31), seed=1).available_bytes
    assert np.abs(twice - 2 * few).max() <= 1


def test_traces_stay_within_the_memory_and_move() -> None:
    free = make_traces(HOUR, np.full(100, 10**9), seed=3).available_bytes / 1e9
    assert free.min() >= 0.03 - 1e-9
    assert free.max() <= 1.0
    assert 0.4 < free.mean() < 0.75
    falls = np.diff(free, axis=1) < -0.02
    assert 0.2 < (falls.sum(axis=1) / 12).mean() < 2.0, "about twelve apps an hour, not all of them large"


def test_stays_of_apps_are_heavy_tailed() -> None:
    """Half of the stays are over in 32 s, a hundredth lasts 430 s or more: 20 x 2^(2/3) and 20 x 100^(2/3)."""
    spec = TraceSpec(drift_ratio=0.0, user_spread=0.0, app_spread=0.0, apps_per_h=3.0, duration_s=36000.0, period_s=1.0)
    free = make_traces(spec, np.full(60, 10**9), seed=0).available_bytes / 1e9
    top = free.max(axis=1, keepdims=True)
    busy = top - free > 0.03
    stays: list[int] = []
    for row in busy:
        edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]])))
        stays += (edges[1::2] - edges[::2]).tolist()
    assert 25 < np.median(stays) < 45
    assert 250 < np.quantile(stays, 0.99) < 1200


def test_no_apps_and_no_drift_is_a_flat_line() -> None:
    spec = TraceSpec(apps_per_h=0.0, drift_ratio=0.0, duration_s=100.0)
    free = make_traces(spec, np.full(5, 10**9), seed=0).available_bytes
    assert (free == free[:, :1]).all()


def test_reading_times_and_rows() -> None:
    traces = MemoryTraces(period_s=2.0, available_bytes=np.array([[5, 3, 9], [10, 20, 30]]))
    assert (len(traces), traces.duration_s) == (2, 6.0)
    assert traces.at(0.0).tolist() == [5, 10]
    assert traces.at(3.9).tolist() == [3, 20]
    assert traces.at(6.0).tolist() == [5, 10], "starts again"
    assert traces.at(np.array([1.0, 2.0, 11.0]), np.array([1, 0, 1])).tolist() == [10, 3, 30]
    assert traces.lowest(0.0, 4.0).tolist() == [3, 10]
    assert traces.lowest(4.0, 4.0).tolist() == [5, 10]
    assert traces.lowest(2.0, 0.0).tolist() == [3, 20]


def test_all_problems_of_a_spec_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        make_traces(TraceSpec(duration_s=-1.0, stay_s=0.0, apps_per_h=float("nan")), np.array([1]), seed=0)
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError, match="stay_exponent must be above 1") as caught:
        make_traces(TraceSpec(stay_exponent=0.9, free_low_ratio=0.9), np.array([1]), seed=0)
    assert len(caught.value.problems) == 2


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_csv_with_several_clients(tmp_path: Path) -> None:
    text = "client, time_s, available\na,0,4 MiB\nb,1,1000\na,2.5,1 MiB\na,2.9,3 MiB\nb,4,2000\n"
    traces = load_traces(write(tmp_path, "t.csv", text), period_s=1.0)
    assert traces.available_bytes.tolist() == [
        [4 * MIB, 4 * MIB, MIB, 3 * MIB, 3 * MIB],  # the fall within the third second is not lost
        [1000, 1000, 1000, 1000, 2000],
    ]


def test_csv_with_one_client_and_toml_say_the_same(tmp_path: Path) -> None:
    plain = load_traces(write(tmp_path, "t.csv", "time_s,available\n10,8 MiB\n13,2 MiB\n"), period_s=2.0)
    table = '[[client]]\nname = "a"\ntime_s = [10, 13]\navailable = ["8 MiB", 2097152]\n'
    assert plain.available_bytes.tolist() == [[8 * MIB, 2 * MIB]]
    assert load_traces(write(tmp_path, "t.toml", table), period_s=2.0).available_bytes.tolist() == [[8 * MIB, 2 * MIB]]


@pytest.mark.parametrize(
    ("name", "text", "problems"),
    [
        ("t.csv", "time,bytes\n0,1\n", ["line 1 must name time_s, available"]),
        ("t.csv", "time_s,available\n", ["has no rows"]),
        (
            "t.csv",
            "client,time_s,available\na,0,lots\na,soon,1\na,1\nb,5,10\nb,5,11\n",
            ["line 2: a byte budget must look like", "line 3: time_s", "line 4 must have 3", "'b': time_s must ascend"],
        ),
        ("t.csv", "time_s,available\n0,-5\n", ["line 2: a byte budget must be positive"]),
        ("t.toml", "[[client]\n", ["is not TOML"]),
        ("t.toml", "x = 1\n", ["must hold [[client]] tables"]),
        ("t.toml", "[[client]]\ntime_s = [0]\navailable = [1, 2]\n", ["client 1 must have time_s and available"]),
        (
            "t.toml",
            '[[client]]\nname="a"\ntime_s=[0]\navailable=[1]\n' * 2,
            ["client 2: the name 'a' is given twice"],
        ),
        ("t.txt", "", ["must end in .csv or .toml"]),
    ],
)
def test_what_is_no_trace(tmp_path: Path, name: str, text: str, problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_traces(write(tmp_path, name, text))
    assert len(caught.value.problems) == len(problems), caught.value.problems
    for problem, expected in zip(caught.value.problems, problems, strict=True):
        assert expected in problem
        assert name in problem


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_traces(tmp_path / "none.csv")
    long = write(tmp_path, "long.csv", "time_s,available\n0,1\n1e12,2\n")
    with pytest.raises(ConfigError, match="use a period_s larger than 1"):
        load_traces(long)
    with pytest.raises(ConfigError, match="period_s must be a positive number"):
        load_traces(long, period_s=0.0)
    many = write(tmp_path, "many.csv", "time_s,available\n" + "x,1\n" * 100)
    with pytest.raises(ConfigError, match="and 80 more"):
        load_traces(many)
