"""Chance in how long tasks take: computing that is now and then slower, and packets of the uplink that get lost.

The model is the usual one of coded computing: a task's computing takes what its device's profile says plus an
exponentially distributed time, whose mean is a multiple of that ("shifted exponential"); each packet of an upload is
lost with a fixed probability and sent again until it arrives, so the number of sendings is geometric. Source of its
form: S. Prakash, S. Dhakal, M. R. Akdeniz, Y. Yona, S. Talwar, S. Avestimehr, N. Himayat, "Coded Computing for
Low-Latency Federated Learning over Wireless Edge Networks", IEEE JSAC 2021, https://arxiv.org/abs/2011.06223.
Differs: what a task's computing or upload meets follows from the task's seed, so that a run can be replayed; the
downlink loses nothing, as servers send with more power; all packets of an upload are equally long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import numpy as np

from fedhybrid.errors import ConfigError
from fedhybrid.registry import nearest_hint
from fedhybrid.seeds import derive_seed

__all__ = ["DelaySpec", "Delays", "arrival_probability", "make_delays"]

_MOST_RATIO = 1e6
_MOST_ERASURE = 0.99
_DEVIATIONS = 40.0  # of the number of lost packets: with more the rest is below float64, at the largest erasure, too
_SLACK = 1e-9  # of the time that there is: sums of seconds in another order differ in their last bits


@dataclass(frozen=True, kw_only=True)
class DelaySpec:
    """Delays as a recipe states them in `[fleet.delays]`: one value for all, or a table from tiers' names to values.

    Tiers that a table does not name have none.

    Attributes:
        compute_ratio: Mean of the exponential part of a task's computing, as a multiple of its other part; at least 0.
        erasure: Probability that a packet of an upload is lost, each time that it is sent; 0 to 0.99.
        packet_bytes: Largest packet.
    """

    compute_ratio: float | Mapping[str, float] = 0.0
    erasure: float | Mapping[str, float] = 0.0
    packet_bytes: int = 1500


@final
@dataclass(frozen=True, kw_only=True)
class Delays:
    """The delays of a fleet's tiers, by their numbers; empty tuples are no delays at all."""

    compute_ratio: tuple[float, ...] = ()
    erasure: tuple[float, ...] = ()
    packet_bytes: int = 1500

    def slowdown(self, tier: int, seed: int) -> float:
        """What the seconds of a task's computing are multiplied by, at least 1; it follows from the task's seed."""
        ratio = _of(self.compute_ratio, tier)
        if not ratio:
            return 1.0
        below_one = (derive_seed(seed, purpose="slowdown") >> 10) / 2**53
        return 1.0 - ratio * math.log1p(-below_one)

    def carried_bytes(self, tier: int, seed: int, num_bytes: int) -> int:
        """What goes over the uplink until so many bytes have arrived; it follows from the task's seed."""
        erasure = _of(self.erasure, tier)
        if not erasure or not num_bytes:
            return num_bytes
        packets, each_bytes = _packets(num_bytes, self.packet_bytes)
        rng = np.random.default_rng(derive_seed(seed, purpose="lost packets"))
        return num_bytes + each_bytes * int(rng.negative_binomial(packets, 1.0 - erasure))

    def arrival_probability(
        self,
        tier: int,
        *,
        fixed_s: float,
        compute_s: float,
        bytes_up: int,
        uplink_bytes_per_s: float,
        within_s: float,
    ) -> float:
        """Probability that a task of this tier is back in time; see the function of the same name."""
        return arrival_probability(
            fixed_s=fixed_s,
            compute_s=compute_s,
            compute_ratio=_of(self.compute_ratio, tier),
            bytes_up=bytes_up,
            erasure=_of(self.erasure, tier),
            packet_bytes=self.packet_bytes,
            uplink_bytes_per_s=uplink_bytes_per_s,
            within_s=within_s,
        )


@lru_cache(maxsize=4096)
def arrival_probability(
    *,
    fixed_s: float,
    compute_s: float,
    compute_ratio: float,
    bytes_up: int,
    erasure: float,
    packet_bytes: int,
    uplink_bytes_per_s: float,
    within_s: float,
) -> float:
    """P(fixed + computing + upload <= `within_s`), summed over the number of lost packets; exact to rounding.

    A duration that equals `within_s` but for a billionth of it is in time: the clock adds seconds in another order.

    Args:
        fixed_s: Seconds without chance, such as of the download.
        compute_s: Seconds of computing without its exponential part; infinity never arrives.
        compute_ratio: Mean of that part, in `compute_s`.
        bytes_up: Of the upload, each counted once.
        erasure: Probability that a packet is lost.
        packet_bytes: Largest packet.
        uplink_bytes_per_s: Of the link.
        within_s: Seconds from the task's beginning; may be infinite.

    >>> alone = dict(compute_ratio=0.0, bytes_up=100, packet_bytes=100, uplink_bytes_per_s=100.0)
    >>> arrival_probability(fixed_s=0.0, compute_s=1.0, erasure=0.5, within_s=3.5, **alone)  # two sendings may be made
    0.75
    """
    if not math.isfinite(fixed_s + compute_s):
        return 0.0
    if within_s == math.inf:
        return 1.0
    left_s = within_s - fixed_s - compute_s - bytes_up / uplink_bytes_per_s
    if left_s < -_SLACK * within_s:
        return 0.0
    left_s = max(left_s, 0.0)
    mean_s = compute_ratio * compute_s
    if not erasure or not bytes_up:
        return 1.0 if not mean_s else -math.expm1(-left_s / mean_s)
    packets, each_bytes = _packets(bytes_up, packet_bytes)
    again_s = each_bytes / uplink_bytes_per_s
    usual, spread = packets * erasure / (1 - erasure), math.sqrt(packets * erasure) / (1 - erasure)
    most = min(math.floor(left_s / again_s + _SLACK), math.ceil(usual + _DEVIATIONS * (spread + 1 / (1 - erasure) + 1)))
    lost = np.arange(most + 1, dtype=np.float64)
    ratios = np.log((packets + lost[:-1]) / (lost[:-1] + 1)) + math.log(erasure)
    chance = np.exp(packets * math.log1p(-erasure) + np.concatenate([[0.0], np.cumsum(ratios)]))
    in_time = np.ones_like(lost) if not mean_s else -np.expm1(-np.maximum(left_s - lost * again_s, 0.0) / mean_s)
    return float(min(np.sum(chance * in_time), 1.0))


def make_delays(spec: DelaySpec, tiers: Sequence[str]) -> Delays:
    """The delays of these tiers.

    Raises:
        ConfigError: Values out of their range, tiers that there are not; all at once.
    """
    problems: list[str] = []
    ratios = _by_tier("compute_ratio", spec.compute_ratio, tiers, _MOST_RATIO, problems)
    erasures = _by_tier("erasure", spec.erasure, tiers, _MOST_ERASURE, problems)
    if spec.packet_bytes < 1:
        problems.append(f"fleet.delays.packet_bytes must be at least 1, got {spec.packet_bytes}")
    if problems:
        raise ConfigError(problems)
    return Delays(compute_ratio=ratios, erasure=erasures, packet_bytes=spec.packet_bytes)


def _by_tier(
    name: str, given: float | Mapping[str, float], tiers: Sequence[str], most: float, problems: list[str]
) -> tuple[float, ...]:
    table = given if isinstance(given, Mapping) else dict.fromkeys(tiers, given)
    problems += [
        f"fleet.delays.{name}: there is no tier {key!r}.{nearest_hint(key, tiers)} Known: {', '.join(tiers)}."
        for key in table
        if key not in tiers
    ]
    for value in dict.fromkeys(table.values()):
        if not (math.isfinite(value) and 0 <= value <= most):
            problems.append(f"fleet.delays.{name} must be 0 to {most:g}, got {value}")
    return tuple(float(table.get(tier, 0.0)) for tier in tiers)


def _packets(num_bytes: int, packet_bytes: int) -> tuple[int, int]:
    """How many packets an upload takes, and how long each is."""
    count = -(-num_bytes // packet_bytes)
    return count, -(-num_bytes // count)


def _of(values: tuple[float, ...], tier: int) -> float:
    return values[tier] if values else 0.0
