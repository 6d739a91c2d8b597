"""Tiers: the kinds of devices that a fleet has, as a recipe states them and as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedhybrid.devices import DeviceProfile, load_profile
from fedhybrid.errors import ConfigError
from fedhybrid.fleet.budgets import BudgetDistribution, parse_distribution
from fedhybrid.units import Budget, format_bytes, parse_budget

__all__ = ["Tier", "TierSpec", "parse_tier", "shared_out"]

_MOST_SPREAD = 5.0  # e**5 is 148: devices that unequal are different models
_UNKNOWN_BYTES = 2**62  # of a device that is none, so that its budget is checked all the same


@dataclass(frozen=True, kw_only=True)
class TierSpec:
    """One tier as a recipe states it.

    Attributes:
        name: Its name in reports.
        budget: Bytes ("96 MiB") or per cent of the eager step ("40%") that a step may use on its devices; or a table
            such as {distribution = "uniform", low = "25%", high = "80%"}, see `fleet/budgets.py`.
        device: A row of `DEVICES` or a path to a profile.
        share: Its part of the fleet, relative to the other tiers' shares.
        speed_spread: How unequal devices of one profile are (hot or old ones): standard deviation of the logarithm of
            the factor on their seconds, whose median is 1.
    """

    name: str
    budget: str | int | Budget | Mapping[str, Any]
    device: str
    share: float = 1.0
    speed_spread: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Tier:
    """One tier of a fleet that exists: `clients` devices of one profile with one budget, or one distribution of them.

    `speed_spread` is as in `TierSpec`.
    """

    name: str
    budget: Budget | BudgetDistribution
    device: DeviceProfile
    clients: int
    speed_spread: float = 0.0


def parse_tier(spec: TierSpec) -> tuple[Budget | BudgetDistribution, DeviceProfile]:
    """A tier's budget and device.

    Raises:
        ConfigError: Figures out of their range, a budget or device that is none; all at once.
    """
    problems: list[str] = []
    if not (math.isfinite(spec.share) and spec.share > 0):
        problems.append(f"share must be a positive number, got {spec.share}")
    if not 0 <= spec.speed_spread <= _MOST_SPREAD:
        problems.append(f"speed_spread must be in [0, {_MOST_SPREAD:g}], got {spec.speed_spread}")
    device, unknown = _device(spec.device)
    most_bytes = _UNKNOWN_BYTES if device is None else device.memory_bytes
    budget: Budget | BudgetDistribution | None = None
    try:
        budget = _budget(spec.budget, most_bytes, spec.device)
    except ConfigError as error:
        problems += error.problems
    problems += unknown
    if problems or budget is None or device is None:
        raise ConfigError([f"fleet tier {spec.name!r}: {problem}" for problem in problems])
    return budget, device


def _device(name: str) -> tuple[DeviceProfile | None, tuple[str, ...]]:
    """The profile, or None and why."""
    try:
        return load_profile(name), ()
    except ConfigError as error:
        return None, error.problems


def _budget(given: str | int | Budget | Mapping[str, Any], most_bytes: int, device: str) -> Budget | BudgetDistribution:
    if isinstance(given, Mapping):
        return parse_distribution(given, most_bytes)
    budget = parse_budget(given)
    if budget.total_bytes is not None and budget.total_bytes > most_bytes:
        raise ConfigError(
            f"the budget of {format_bytes(budget.total_bytes)} is more than the memory of {device!r} "
            f"({format_bytes(most_bytes)})"
        )
    return budget


def shared_out(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers that add up to `total`, as near to the shares as whole numbers can be."""
    exact = [total * share / math.fsum(shares) for share in shares]
    counts = [math.floor(amount) for amount in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts
