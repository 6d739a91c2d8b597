"""Who is online when: any moment in any order agrees with intervals that are walked from the beginning."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhybrid.errors import ConfigError
from fedhybrid.fleet import Availability, AvailabilitySpec, load_intervals, make_availability
from fedhybrid.hashing import hashed_below, hashed_ratio

DUTY = AvailabilitySpec(kind="duty", on_s=40.0, off_s=25.0, jitter_ratio=0.5)
RANDOM = AvailabilitySpec(kind="random", on_ratio=0.4, slot_s=7.0)
FILE = "client,start_s,end_s\na,0,10\nb,3.5,4\na,20,25.25\nb,4,6\na,90,100\nc,0,100\n"
CLIENTS = 12
NOBODY = np.array([], dtype=np.int64)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Availability]:
    path = tmp_path_factory.mktemp("online") / "online.csv"
    path.write_text(FILE)
    specs = {"duty": DUTY, "random": RANDOM, "file": AvailabilitySpec(kind="file", file=path)}
    return {kind: make_availability(spec, seed=4) for kind, spec in specs.items()}


def one(availability: Availability, client: int, now_s: float) -> bool:
    return bool(availability.available(np.array([client]), now_s)[0])


@pytest.mark.parametrize("kind", ["duty", "random", "file"])
@settings(max_examples=60)
@given(now_s=st.floats(0, 1e7), data=st.data())
def test_the_end_of_a_time_online_is_its_end(
    kinds: dict[str, Availability], kind: str, now_s: float, data: st.DataObject
) -> None:
    """Online at every moment before, away at that very moment: the answers fit each other to the microsecond."""
    availability = kinds[kind]
    client = data.draw(st.integers(0, CLIENTS - 1))
    until_s = availability.online_until_s(client, now_s)
    if not one(availability, client, now_s):
        assert until_s == now_s
    elif until_s == math.inf:
        assert kind == "file"
        assert client % 3 == 2
    else:
        assert until_s > now_s
        assert not one(availability, client, until_s)
        assert one(availability, client, until_s - 2e-6)
        between_s = now_s + (until_s - 2e-6 - now_s) * data.draw(st.floats(0, 1))
        assert one(availability, client, between_s)
        assert availability.online_until_s(client, between_s) == until_s


@pytest.mark.parametrize("kind", ["duty", "random", "file"])
@settings(max_examples=40)
@given(now_s=st.floats(0, 1e6))
def test_nobody_comes_back_before_the_next_change_and_somebody_then(
    kinds: dict[str, Availability], kind: str, now_s: float
) -> None:
    availability, everyone = kinds[kind], np.arange(CLIENTS)
    away = everyone[~availability.available(everyone, now_s)]
    next_s = availability.next_change_s(CLIENTS, now_s)
    if not len(away):
        assert next_s == math.inf
        return
    assert next_s > now_s
    for at_s in np.linspace(now_s, next_s - 2e-6, 25):
        assert not availability.available(away, float(at_s)).any()
    assert availability.available(away, next_s).any()


@pytest.mark.parametrize("kind", ["duty", "random", "file"])
def test_one_client_and_many_and_any_order_are_the_same(kinds: dict[str, Availability], kind: str) -> None:
    availability, everyone = kinds[kind], np.arange(50)
    times_s = np.random.default_rng(0).uniform(0, 1e5, size=30).tolist()
    forth = [availability.available(everyone, at_s).tolist() for at_s in times_s]
    back = [availability.available(everyone[::-1], at_s)[::-1].tolist() for at_s in reversed(times_s)]
    assert forth == back[::-1]
    assert forth == [[one(availability, client, at_s) for client in range(50)] for at_s in times_s]
    assert availability.available(NOBODY, 3.0).tolist() == []


def walked(availability: Availability, client: int, end_s: float) -> list[tuple[float, bool]]:
    """(length, online) of each whole stretch of time of one client, one after the other."""
    edges, now_s = [], 0.0
    while now_s < end_s:
        online = one(availability, client, now_s)
        now_s = availability.online_until_s(client, now_s) if online else next_online_s(availability, client, now_s)
        edges.append((now_s, online))
    return [(b - a, online) for (a, _), (b, online) in pairwise(edges)]


def next_online_s(availability: Availability, client: int, now_s: float) -> float:
    """By trying, a second at a time, then by bisection."""
    high_s = now_s + 1.0
    while not one(availability, client, high_s):
        high_s += 1.0
    low_s = high_s - 1.0
    while high_s - low_s > 1e-7:
        middle_s = (low_s + high_s) / 2
        low_s, high_s = (low_s, middle_s) if one(availability, client, middle_s) else (middle_s, high_s)
    return high_s


def test_a_duty_cycle_repeats_with_times_of_its_own(kinds: dict[str, Availability]) -> None:
    lengths: dict[bool, list[float]] = {True: [], False: []}
    for client in range(8):
        stretches = walked(kinds["duty"], client, 300.0)
        for online in (True, False):
            mine = [length for length, is_on in stretches if is_on is online]
            assert max(mine) - min(mine) < 5e-6
            lengths[online].append(mine[0])
    for online, middle_s in ((True, 40.0), (False, 25.0)):
        assert middle_s / 2 <= min(lengths[online]) < 0.8 * middle_s
        assert 1.2 * middle_s < max(lengths[online]) <= middle_s * 1.5
    calm = make_availability(AvailabilitySpec(kind="duty", on_s=3.0, off_s=1.0), seed=0)
    assert {round(length, 4) for length, online in walked(calm, 5, 60.0) if online} == {3.0}


@pytest.mark.parametrize(("kind", "ratio"), [("duty", 40 / 65), ("random", 0.4)])
def test_the_share_of_those_online_is_what_was_asked_for(
    kinds: dict[str, Availability], kind: str, ratio: float
) -> None:
    everyone = np.arange(20_000)
    for now_s in (0.0, 31.0, 1e6):
        assert kinds[kind].available(everyone, now_s).mean() == pytest.approx(ratio, abs=0.015)


def test_random_times_are_geometric_and_begin_at_moments_of_their_own() -> None:
    availability = make_availability(RANDOM, seed=9)
    stretches = [each for client in range(5) for each in walked(availability, client, 1500.0)]
    online = np.array([length for length, is_on in stretches if is_on]) / 7
    away = np.array([length for length, is_on in stretches if not is_on]) / 7
    assert np.abs(online - np.rint(online)).max() < 1e-5
    assert online.mean() == pytest.approx(1 / 0.6, rel=0.15)
    assert away.mean() == pytest.approx(1 / 0.4, rel=0.15)
    ends_s = [availability.online_until_s(client, 0.0) % 7 for client in range(40)]
    assert len({round(end_s, 3) for end_s in ends_s if end_s}) > 10


def test_long_times_online_are_found() -> None:
    availability = make_availability(AvailabilitySpec(kind="random", on_ratio=0.999, slot_s=1.0), seed=0)
    ends_s = np.array([availability.online_until_s(client, 5.0) for client in range(300)]) - 5.0
    assert ends_s.mean() == pytest.approx(1000, rel=0.2)


def test_files_repeat_and_are_walked_exactly(kinds: dict[str, Availability]) -> None:
    availability = kinds["file"]
    online = {0: [(0, 10), (20, 25.25), (90, 100)], 1: [(3.5, 6)], 2: [(0, 100)]}
    for now_s in np.arange(0, 320, 0.25).tolist():
        expected = [any(a <= now_s % 100 < b for a, b in online[client % 3]) for client in range(7)]
        assert availability.available(np.arange(7), now_s).tolist() == expected, now_s
    assert availability.online_until_s(0, 95.0) == 110.0, "goes on where the file begins again"
    assert availability.online_until_s(3, 309.5) == 310.0
    assert availability.online_until_s(1, 3.75) == 6.0, "two that touch are one"
    assert availability.online_until_s(2, 50.0) == math.inf
    assert availability.next_change_s(1, 25.25) == 90.0
    assert availability.next_change_s(2, 40.0) == 90.0
    assert availability.next_change_s(2, 101.0) == 103.5
    late = kinds["file"].next_change_s(2, 93.0)
    assert late == 103.5, "of the next pass"


def test_always() -> None:
    availability = make_availability(AvailabilitySpec(), seed=0)
    assert availability.available(np.arange(3), 7.0).all()
    assert availability.online_until_s(2, 7.0) == availability.next_change_s(3, 7.0) == math.inf


def test_seeds_differ() -> None:
    everyone = np.arange(200)
    for spec in (DUTY, RANDOM):
        first, again, other = (make_availability(spec, seed).available(everyone, 50.0) for seed in (1, 1, 2))
        assert (first == again).all()
        assert (first != other).any()


@pytest.mark.parametrize(
    ("spec", "problems"),
    [
        (AvailabilitySpec(kind="dutty"), ["fleet.availability.kind: unknown kind of availability 'dutty'. Did you"]),
        (AvailabilitySpec(on_s=3.0), ["fleet.availability.on_s is no option of kind 'always', which has none"]),
        (
            AvailabilitySpec(kind="duty", on_s=math.nan, jitter_ratio=1.0, slot_s=4.0),
            [
                "slot_s is no option of kind 'duty', which has on_s, off_s, jitter_ratio",
                "off_s is missing: kind 'duty' needs it",
                "on_s must be a positive number of seconds, got nan",
                "jitter_ratio must be at least 0 and below 1, got 1.0",
            ],
        ),
        (
            AvailabilitySpec(kind="random", on_ratio=1.0, slot_s=0.0),
            ["slot_s must be a positive number of seconds, got 0.0", "on_ratio must be above 0 and below 1, got 1.0"],
        ),
        (AvailabilitySpec(kind="file"), ["fleet.availability.file is missing"]),
        (
            AvailabilitySpec(kind="file", file="no such file.csv"),
            ["fleet.availability.file: no such file.csv cannot be"],
        ),
    ],
)
def test_specs_that_make_no_sense(spec: AvailabilitySpec, problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_availability(spec, seed=0)
    assert len(caught.value.problems) == len(problems), caught.value.problems
    for problem, part in zip(caught.value.problems, problems, strict=True):
        assert part in problem


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["line 1 must be client,start_s,end_s; found ''"]),
        ("client,start_s,end_s\n", ["has no rows"]),
        (
            "client,start_s,end_s\na,0,soon\na,1\na,5,5\n\na,inf,7\n",
            [
                "line 2 must be a client and two numbers",
                "line 3 must be",
                "line 4: needs 0 <= start_s",
                "line 6 must be",
            ],
        ),
        ("client,start_s,end_s\nb,4,9\nb,0,5\n", ["client 'b' is online from 4 s on while an earlier interval"]),
        ("client,start_s,end_s\n" + "x\n" * 30, ["line"] * 20 + ["and 10 more"]),
        ("client,start_s,end_s\na,0,4e12\nb,0,4e12\n", ["2 clients and 4e+12 s are too much"]),
    ],
)
def test_what_is_no_file_of_intervals(tmp_path: Path, text: str, problems: list[str]) -> None:
    path = tmp_path / "online.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_intervals(path)
    assert len(caught.value.problems) == len(problems), caught.value.problems
    for problem, part in zip(caught.value.problems, problems, strict=True):
        assert part in problem
        assert "online.csv" in problem


def test_hashed_numbers_look_random() -> None:
    """Mean, spread, neighbours and both arguments; and the same for one number as for many."""
    clients, slots = np.arange(300)[:, None], np.arange(300)
    ratios = hashed_ratio(3, clients, slots)
    assert ratios.shape == (300, 300)
    assert 0 <= ratios.min() < ratios.max() < 1
    assert ratios.mean() == pytest.approx(0.5, abs=0.005)
    assert np.histogram(ratios, bins=20, range=(0, 1))[0] == pytest.approx(4500, rel=0.06)
    for other in (ratios[1:] - ratios[:-1], ratios[:, 1:] - ratios[:, :-1], ratios - ratios.T):
        off = other[other != 0]
        assert off.var() == pytest.approx(1 / 6, rel=0.02), "differences of independent numbers"
    assert len(np.unique(ratios)) == ratios.size
    assert hashed_ratio(3, 17, 5).tolist() == [ratios[17, 5]]
    assert hashed_ratio(4, 17, 5).tolist() != [ratios[17, 5]]
    below = hashed_below(3, 6, np.arange(60_000))
    assert np.bincount(below) == pytest.approx(10_000, rel=0.05)
