"""Chance in how long tasks take: what is drawn, and what is said about it before."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run_parts import assert_same_run, small

import fedhybrid as fh
from fedhybrid.errors import ConfigError
from fedhybrid.experiment.check import load_config
from fedhybrid.fleet import Delays, DelaySpec, TierSpec, arrival_probability, make_delays, make_fleet

SEEDS = range(4000)
UPLINK = 1e6


def test_a_fleet_without_delays_takes_exactly_its_time() -> None:
    fleet = make_fleet([TierSpec(name="all", budget="100%", device="laptop")], 3, 1)
    assert [fleet.slowdown(client, 7) for client in range(3)] == [1.0] * 3
    assert [fleet.carried_bytes(client, 7, 12_345) for client in range(3)] == [12_345] * 3


def test_no_delays_change_no_byte_of_a_run(tmp_path: Path) -> None:
    raw: dict[str, Any] = small(method="fedavg", rounds=1)
    fh.run(raw, out=tmp_path / "none")
    fh.run(raw | {"fleet": raw["fleet"] | {"delays": {"compute_ratio": 0.0}}}, out=tmp_path / "zero")
    assert_same_run(tmp_path / "none", tmp_path / "zero")


def test_the_seed_decides() -> None:
    delays = Delays(compute_ratio=(1.0,), erasure=(0.3,))
    for draw in (lambda seed: delays.slowdown(0, seed), lambda seed: float(delays.carried_bytes(0, seed, 10_000))):
        assert draw(5) == draw(5)
        assert len({draw(seed) for seed in range(20)}) > 3


def test_a_tier_has_its_own() -> None:
    delays = make_delays(DelaySpec(compute_ratio={"slow": 2.0}, erasure=0.1), ["slow", "fast"])
    assert delays.compute_ratio == (2.0, 0.0)
    assert delays.erasure == (0.1, 0.1)
    assert delays.slowdown(1, 3) == 1.0 < delays.slowdown(0, 3)


def test_computing_is_a_shifted_exponential() -> None:
    delays = Delays(compute_ratio=(2.5,))
    extra = np.array([delays.slowdown(0, seed) - 1.0 for seed in SEEDS])
    error = 2.5 / math.sqrt(len(extra))
    assert abs(extra.mean() - 2.5) < 4 * error
    assert abs(extra.std() - 2.5) < 4 * math.sqrt(2) * error  # an exponential's deviation is its mean
    assert abs(np.mean(extra > 2.5) - math.exp(-1)) < 4 * math.sqrt(0.25 / len(extra))
    assert extra.min() > 0


@pytest.mark.parametrize("num_bytes", [1, 1500, 1501, 40_000])
def test_lost_packets_are_sent_again(num_bytes: int) -> None:
    delays = Delays(erasure=(0.25,))
    packets = math.ceil(num_bytes / 1500)
    each = math.ceil(num_bytes / packets)
    lost = np.array([delays.carried_bytes(0, seed, num_bytes) - num_bytes for seed in SEEDS]) / each
    assert (lost == lost.round()).all()
    spread = math.sqrt(packets * 0.25) / 0.75
    assert abs(lost.mean() - packets * 0.25 / 0.75) < 4 * spread / math.sqrt(len(lost))


@pytest.mark.parametrize(
    ("ratio", "erasure", "bytes_up", "within_s"),
    [
        (2.0, 0.0, 1000, 0.4),
        (0.0, 0.3, 6000, 0.12),
        (1.0, 0.3, 60_000, 0.35),
        (0.5, 0.9, 3000, 0.2),
        (3.0, 0.1, 0, 0.5),
    ],
)
def test_the_probability_is_how_often_it_happens(ratio: float, erasure: float, bytes_up: int, within_s: float) -> None:
    delays = Delays(compute_ratio=(ratio,), erasure=(erasure,))
    said = delays.arrival_probability(
        0, fixed_s=0.01, compute_s=0.1, bytes_up=bytes_up, uplink_bytes_per_s=UPLINK, within_s=within_s
    )
    came = [
        0.01 + 0.1 * delays.slowdown(0, seed) + delays.carried_bytes(0, seed, bytes_up) / UPLINK <= within_s
        for seed in SEEDS
    ]
    assert 0.05 < said < 0.999
    assert abs(np.mean(came) - said) < 4 * math.sqrt(said * (1 - said) / len(came))


def test_the_probability_at_its_ends() -> None:
    def chance(**changes: float) -> float:
        given: dict[str, Any] = {
            "fixed_s": 0.0, "compute_s": 1.0, "compute_ratio": 0.0, "bytes_up": 100, "erasure": 0.0,
            "packet_bytes": 100, "uplink_bytes_per_s": 100.0, "within_s": 2.0,
        }  # fmt: skip
        return arrival_probability(**given | changes)

    assert chance() == 1.0
    assert chance(within_s=1.99) == 0.0
    assert chance(within_s=math.inf, erasure=0.9) == 1.0
    assert chance(compute_s=math.inf, within_s=math.inf) == 0.0
    assert chance(erasure=0.2) == pytest.approx(0.8)
    assert chance(within_s=1e4, erasure=0.5, compute_ratio=1.0) == pytest.approx(1.0)
    assert chance(bytes_up=10**8, uplink_bytes_per_s=1e8, packet_bytes=1500, erasure=0.1, within_s=3.0) == (
        pytest.approx(1.0)
    )
    rising = [chance(erasure=0.3, compute_ratio=0.5, within_s=2.0 + step / 10) for step in range(60)]
    assert rising == sorted(rising)


def test_a_deadline_that_equals_the_duration_is_met() -> None:
    """To the last bit, in whatever order the seconds are added up."""
    rng = np.random.default_rng(1)
    for _ in range(300):
        fixed_s, compute_s, rate = rng.uniform(0.001, 1.0, 3)
        given: dict[str, Any] = {
            "fixed_s": fixed_s, "compute_s": compute_s, "bytes_up": 12_340, "packet_bytes": 1500,
            "uplink_bytes_per_s": 1e6 * rate,
        }  # fmt: skip
        upload_s = 12_340 / (1e6 * rate)
        for total_s in ((fixed_s + compute_s) + upload_s, fixed_s + (compute_s + upload_s)):
            assert arrival_probability(**given, compute_ratio=0.0, erasure=0.0, within_s=total_s) == 1.0
            none_lost = arrival_probability(**given, compute_ratio=0.0, erasure=0.1, within_s=total_s)
            assert none_lost == pytest.approx(0.9**9)
            again_s = math.ceil(12_340 / 9) / (1e6 * rate)
            two_lost = arrival_probability(**given, compute_ratio=0.0, erasure=0.1, within_s=total_s + 2 * again_s)
            assert two_lost == pytest.approx(0.9**9 * (1 + 9 * 0.1 + 45 * 0.01))
            assert arrival_probability(**given, compute_ratio=0.0, erasure=0.0, within_s=total_s * (1 - 1e-6)) == 0.0


@pytest.mark.parametrize("erasure", [0.1, 0.9, 0.99])
def test_nothing_is_left_out_of_the_sum(erasure: float) -> None:
    alone = {"fixed_s": 0.0, "compute_s": 1.0, "compute_ratio": 0.0, "packet_bytes": 100, "uplink_bytes_per_s": 100.0}
    for packets in (1, 20):
        chance = arrival_probability(**alone, bytes_up=100 * packets, erasure=erasure, within_s=1e7)  # type: ignore[arg-type]
        assert abs(chance - 1.0) < 1e-12


def test_all_that_is_wrong_is_said_at_once() -> None:
    spec = DelaySpec(compute_ratio={"slwo": -1.0}, erasure=1.0, packet_bytes=0)
    with pytest.raises(ConfigError) as caught:
        make_delays(spec, ["slow", "fast"])
    assert [problem.split(" ")[0] for problem in caught.value.problems] == [
        "fleet.delays.compute_ratio:",
        "fleet.delays.compute_ratio",
        "fleet.delays.erasure",
        "fleet.delays.packet_bytes",
    ]
    assert "Did you mean 'slow'?" in caught.value.problems[0]


def test_a_recipe_is_told_what_is_wrong_with_its_delays() -> None:
    raw = small()
    with pytest.raises(ConfigError) as caught:
        load_config(raw | {"fleet": raw["fleet"] | {"delays": {"erasur": 0.1, "packet_bytes": "many"}}})
    assert any("fleet.delays.erasur" in problem and "'erasure'" in problem for problem in caught.value.problems)
    assert any("fleet.delays.packet_bytes" in problem for problem in caught.value.problems)
    with pytest.raises(ConfigError, match=r"fleet.delays.erasure: there is no tier 'week'. Did you mean 'weak'"):
        load_config(raw | {"fleet": raw["fleet"] | {"delays": {"erasure": {"week": 0.1}}}})
