"""A fleet of unequal devices, as arrays: a million clients are a few arrays, not a million objects.

What may be asked of some clients costs in proportion to their number, not to the fleet's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedhybrid.fleet.availability import AlwaysOnline, Availability, BoolArray
from fedhybrid.fleet.delays import Delays
from fedhybrid.fleet.memory import FleetMemory
from fedhybrid.fleet.tiers import Tier
from fedhybrid.records import FloatArray, IntArray
from fedhybrid.units import Budget

__all__ = ["Fleet"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Fleet:
    """Clients 0, 1, ... and all that is known about their devices.

    Attributes:
        tier: `tier[i]` is the index in `tiers` of client i's tier.
        tiers: What the clients of a tier have in common.
        drawn: Each client's draw from its tier's distribution of budgets; None where all tiers have one budget.
        slowness: Each client's factor on seconds; None where all are 1.
        availability: Who is online when.
        memory: What other apps leave of budgets; None where budgets do not change.
        delays: What chance adds to the seconds of tasks, by tier.
    """

    tier: NDArray[np.int16]
    tiers: tuple[Tier, ...]
    drawn: NDArray[np.float32] | None = None
    slowness: NDArray[np.float32] | None = None
    availability: Availability = field(default_factory=AlwaysOnline)
    memory: FleetMemory | None = None
    delays: Delays = field(default_factory=Delays)

    def __len__(self) -> int:
        return len(self.tier)

    def tier_of(self, client: int) -> Tier:
        """The tier of one client."""
        return self.tiers[int(self.tier[client])]

    def budgets(self, *, resident_bytes: int, eager_peak_bytes: int) -> IntArray:
        """Each client's budget in bytes, for a step with these figures (per cent budgets depend on them)."""
        return self.budget_bytes(np.arange(len(self)), resident_bytes=resident_bytes, eager_peak_bytes=eager_peak_bytes)

    def budget_bytes(self, clients: IntArray, *, resident_bytes: int, eager_peak_bytes: int) -> IntArray:
        """The budgets of some clients in bytes, for a step with these figures; where memory changes, their caps."""
        tier = self.tier[clients]
        found = np.empty(len(tier), dtype=np.int64)
        for number in np.flatnonzero(np.bincount(tier)):
            here, budget = tier == number, self.tiers[number].budget
            if isinstance(budget, Budget):
                found[here] = budget.resolve_bytes(resident_bytes=resident_bytes, eager_peak_bytes=eager_peak_bytes)
            else:
                assert self.drawn is not None
                found[here] = budget.resolve_bytes(
                    self.drawn[clients[here]], resident_bytes=resident_bytes, eager_peak_bytes=eager_peak_bytes
                )
        return found

    def speed_factor(self, clients: IntArray) -> FloatArray:
        """What seconds of each client's profile are multiplied by to give those on its very device."""
        if self.slowness is None:
            return np.ones(len(clients))
        return self.slowness[clients].astype(np.float64)

    def slowdown(self, client: int, seed: int) -> float:
        """What chance multiplies the computing of a client's task by, at least 1; the task's seed decides."""
        return self.delays.slowdown(int(self.tier[client]), seed)

    def carried_bytes(self, client: int, seed: int, num_bytes: int) -> int:
        """What a client's uplink carries until so many bytes have arrived; the task's seed decides."""
        return self.delays.carried_bytes(int(self.tier[client]), seed, num_bytes)

    def available(self, clients: IntArray, now_s: float) -> BoolArray:
        """Whether each of some clients is online at `now_s`."""
        return self.availability.available(clients, now_s)

    def online_until_s(self, client: int, now_s: float) -> float:
        """When the time online ends that a client is in at `now_s`; `now_s` where it is away, infinity where never."""
        return self.availability.online_until_s(client, now_s)

    def next_change_s(self, now_s: float) -> float:
        """A time after `now_s` before which nobody who is away now comes back; infinity where all are online.

        This looks at all clients.
        """
        return self.availability.next_change_s(len(self), now_s)
