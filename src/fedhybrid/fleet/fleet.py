"""A fleet of unequal devices, as arrays: a million clients are a few arrays, not a million objects."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fedhybrid.devices import DeviceProfile, load_profile
from fedhybrid.errors import ConfigError
from fedhybrid.records import IntArray
from fedhybrid.seeds import derive_seed
from fedhybrid.units import Budget, format_bytes, parse_budget

__all__ = ["Fleet", "Tier", "TierSpec", "make_fleet"]

G = TypeVar("G")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TierSpec:
    """One tier as a recipe states it.

    Attributes:
        name: Its name in reports.
        budget: Bytes ("96 MiB") or per cent of the eager step ("40%") that a step may use on its devices.
        device: A row of `DEVICES` or a path to a profile.
        share: Its part of the fleet, relative to the other tiers' shares.
    """

    name: str
    budget: str | int | Budget
    device: str
    share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Tier:
    """One tier of a fleet that exists: `clients` devices of one profile with one budget."""

    name: str
    budget: Budget
    device: DeviceProfile
    clients: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Fleet:
    """`tier[i]` is the index in `tiers` of client i's tier."""

    tier: IntArray
    tiers: tuple[Tier, ...]

    def __len__(self) -> int:
        return len(self.tier)

    def budgets(self, *, resident_bytes: int, eager_peak_bytes: int) -> IntArray:
        """Each client's budget in bytes, for a step with these figures (per cent budgets depend on them)."""
        by_tier = [
            tier.budget.resolve_bytes(resident_bytes=resident_bytes, eager_peak_bytes=eager_peak_bytes)
            for tier in self.tiers
        ]
        return np.array(by_tier, dtype=np.int64)[self.tier]


def make_fleet(tiers: Sequence[TierSpec], clients: int, seed: int) -> Fleet:
    """Deals `clients` clients to the tiers.

    Shares become exact counts by the largest remainder (ties to the earlier tier); which client is in which tier is a
    random deal that depends on `seed` alone, so that tiers and data are not aligned.

    Raises:
        ConfigError: No clients or tiers, a name twice, a share, budget or device that is not one; all at once.
    """
    problems = [] if clients >= 1 else [f"data.clients must be at least 1, got {clients}"]
    if not tiers:
        problems.append("fleet.tiers must name at least one tier")
    names = [spec.name for spec in tiers]
    problems += [
        f"fleet.tiers: the name {name!r} is given twice" for name in sorted(set(names)) if names.count(name) > 1
    ]
    parsed: list[tuple[Budget, DeviceProfile]] = []
    for spec in tiers:
        if not (math.isfinite(spec.share) and spec.share > 0):
            problems.append(f"fleet tier {spec.name!r}: share must be a positive number, got {spec.share}")
        try:
            parsed.append(_parse(spec))
        except ConfigError as error:
            problems += [f"fleet tier {spec.name!r}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    counts = _largest_remainder([spec.share for spec in tiers], clients)
    tier = np.repeat(np.arange(len(tiers)), counts)
    np.random.default_rng(derive_seed(seed, purpose="fleet")).shuffle(tier)
    return Fleet(
        tier=tier,
        tiers=tuple(
            Tier(name=spec.name, budget=budget, device=device, clients=count)
            for spec, (budget, device), count in zip(tiers, parsed, counts, strict=True)
        ),
    )


def _parse(spec: TierSpec) -> tuple[Budget, DeviceProfile]:
    problems: list[str] = []
    budget, device = _try(problems, parse_budget, spec.budget), _try(problems, load_profile, spec.device)
    if budget is None or device is None:
        raise ConfigError(problems)
    if budget.total_bytes is not None and budget.total_bytes > device.memory_bytes:
        raise ConfigError(
            f"the budget of {format_bytes(budget.total_bytes)} is more than the memory of {device.name!r} "
            f"({format_bytes(device.memory_bytes)})"
        )
    return budget, device


def _try(problems: list[str], parse: Callable[[G], T], given: G) -> T | None:
    try:
        return parse(given)
    except ConfigError as error:
        problems += error.problems
        return None


def _largest_remainder(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers that add up to `total`, as near to the shares as whole numbers can be."""
    exact = [total * share / math.fsum(shares) for share in shares]
    counts = [math.floor(amount) for amount in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts
