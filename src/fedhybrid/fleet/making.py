"""Makes fleets: checks all that a recipe says of one, deals clients to tiers, and draws what is each client's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhybrid.devices import DeviceProfile
from fedhybrid.errors import ConfigError
from fedhybrid.fleet.availability import Availability
from fedhybrid.fleet.budgets import BudgetDistribution
from fedhybrid.fleet.delays import Delays, DelaySpec, make_delays
from fedhybrid.fleet.fleet import Fleet
from fedhybrid.fleet.memory import CheckedMemory, MemorySpec, check_memory, make_memory
from fedhybrid.fleet.online import AvailabilitySpec, make_availability
from fedhybrid.fleet.tiers import Tier, TierSpec, parse_tier, shared_out
from fedhybrid.seeds import derive_seed
from fedhybrid.units import Budget

__all__ = ["check_fleet", "deal_tiers", "make_fleet"]

_MOST_TIERS = 2**15


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """What came of the parts of a fleet that is sound."""

    tiers: list[tuple[Budget | BudgetDistribution, DeviceProfile]]
    memory: CheckedMemory | None
    availability: Availability
    delays: Delays


def check_fleet(
    tiers: Sequence[TierSpec],
    clients: int,
    *,
    memory: MemorySpec | None = None,
    availability: AvailabilitySpec | None = None,
    delays: DelaySpec | None = None,
) -> None:
    """Raises what `make_fleet` would raise, without making anything; it does read the files.

    Raises:
        ConfigError: As `make_fleet`.
    """
    _checked(tiers, clients, 0, memory=memory, availability=availability, delays=delays)


def make_fleet(
    tiers: Sequence[TierSpec],
    clients: int,
    seed: int,
    *,
    memory: MemorySpec | None = None,
    availability: AvailabilitySpec | None = None,
    delays: DelaySpec | None = None,
) -> Fleet:
    """Deals `clients` clients to the tiers.

    Shares become exact counts by the largest remainder (ties to the earlier tier); which client is in which tier is a
    random deal that depends on `seed` alone, so that tiers and data are not aligned.

    Args:
        tiers: At least one.
        clients: How many in all.
        seed: The run's.
        memory: How free memory changes; budgets stand still without it.
        availability: When clients are online; always without it.
        delays: What chance adds to the seconds of tasks; nothing without it.

    Raises:
        ConfigError: No clients or tiers, a name twice, a share, budget or device that is not one, options of `memory`,
            `availability` and `delays`, what is wrong in their files; all at once.
    """
    checked = _checked(tiers, clients, seed, memory=memory, availability=availability, delays=delays)
    shares = [spec.share for spec in tiers]
    tier = deal_tiers(shares, clients, seed)
    made = tuple(
        Tier(name=spec.name, budget=budget, device=device, clients=count, speed_spread=spec.speed_spread)
        for spec, (budget, device), count in zip(tiers, checked.tiers, shared_out(shares, clients), strict=True)
    )
    return Fleet(
        tier=tier,
        tiers=made,
        drawn=_drawn(made, tier, seed),
        slowness=_slowness(made, tier, seed),
        availability=checked.availability,
        memory=make_memory(checked.memory, tier, [each.device.memory_bytes for each in made], seed)
        if checked.memory is not None
        else None,
        delays=checked.delays,
    )


def deal_tiers(shares: Sequence[float], clients: int, seed: int) -> NDArray[np.int16]:
    """Which tier each client is in: counts by the largest remainder, the order by chance.

    Args:
        shares: Each tier's part of the fleet, positive, relative to the others'.
        clients: How many in all.
        seed: The run's.
    """
    tier = np.repeat(np.arange(len(shares), dtype=np.int16), shared_out(shares, clients))
    np.random.default_rng(derive_seed(seed, purpose="fleet")).shuffle(tier)
    return tier


def _checked(
    tiers: Sequence[TierSpec],
    clients: int,
    seed: int,
    *,
    memory: MemorySpec | None,
    availability: AvailabilitySpec | None,
    delays: DelaySpec | None,
) -> _Checked:
    """All parts, or all problems."""
    problems = [] if clients >= 1 else [f"data.clients must be at least 1, got {clients}"]
    if not 1 <= len(tiers) < _MOST_TIERS:
        problems.append(
            "fleet.tiers must name at least one tier" if not tiers else f"fleet.tiers: {len(tiers)} are too many"
        )
    names = [spec.name for spec in tiers]
    problems += [
        f"fleet.tiers: the name {name!r} is given twice" for name in sorted(set(names)) if names.count(name) > 1
    ]
    parsed: list[tuple[Budget | BudgetDistribution, DeviceProfile]] = []
    free: CheckedMemory | None = None
    online: Availability | None = None
    late = Delays()
    for spec in tiers:
        with _collecting(problems):
            parsed.append(parse_tier(spec))
    with _collecting(problems):
        free = None if memory is None else check_memory(memory, max(clients, 1))
    with _collecting(problems):
        online = make_availability(availability or AvailabilitySpec(), seed)
    with _collecting(problems):
        late = late if delays is None else make_delays(delays, names)
    if problems or online is None:
        raise ConfigError(problems)
    return _Checked(tiers=parsed, memory=free, availability=online, delays=late)


@contextmanager
def _collecting(problems: list[str]) -> Iterator[None]:
    """Problems that are raised inside are added to the list, and the next statement follows."""
    try:
        yield
    except ConfigError as error:
        problems += error.problems


def _drawn(tiers: Sequence[Tier], tier: NDArray[np.int16], seed: int) -> NDArray[np.float32] | None:
    """Each client's draw from its tier's distribution, in the order of clients; 0 where the tier has one budget."""
    if all(isinstance(each.budget, Budget) for each in tiers):
        return None
    drawn = np.zeros(len(tier), dtype=np.float32)
    for number, each in enumerate(tiers):
        if not isinstance(each.budget, Budget):
            rng = np.random.default_rng(derive_seed(seed, purpose=f"fleet budgets/{each.name}"))
            drawn[tier == number] = each.budget.draw(each.clients, rng)
    return drawn


def _slowness(tiers: Sequence[Tier], tier: NDArray[np.int16], seed: int) -> NDArray[np.float32] | None:
    """Each client's factor on seconds."""
    if not any(each.speed_spread for each in tiers):
        return None
    slowness = np.ones(len(tier), dtype=np.float32)
    for number, each in enumerate(tiers):
        if each.speed_spread:
            rng = np.random.default_rng(derive_seed(seed, purpose=f"fleet speed/{each.name}"))
            slowness[tier == number] = np.exp(each.speed_spread * rng.standard_normal(each.clients, dtype=np.float32))
    return slowness
