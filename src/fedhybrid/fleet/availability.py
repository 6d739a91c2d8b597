"""When clients are online, as a function of the client and the time: no state, no history, any moment in any order.

Times are compared as whole microseconds, so that the end of a client's time online is the moment at which it is away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray

from fedhybrid.fleet.clock import to_micros, to_seconds
from fedhybrid.hashing import hashed_below, hashed_ratio
from fedhybrid.records import IntArray

__all__ = ["AlwaysOnline", "Availability", "BoolArray", "DutyCycle", "RandomSlots"]

BoolArray = NDArray[np.bool_]

_MOST_SLOTS = 1 << 20  # looked ahead for the end of a time online
_NEXT_SLOTS = 64  # looked ahead for somebody's return


class Availability(Protocol):
    """Who is online when."""

    def available(self, clients: IntArray, now_s: float) -> BoolArray:
        """Whether each of `clients` is online at `now_s`."""

    def online_until_s(self, client: int, now_s: float) -> float:
        """The end of the time online that `client` is in; `now_s` where it is away, infinity where it never ends."""

    def next_change_s(self, clients: int, now_s: float) -> float:
        """A time after `now_s` before which none of the clients 0 to `clients` - 1 that are away now comes back.

        Infinity where all are online.
        """


@final
@dataclass(frozen=True, kw_only=True)
class AlwaysOnline:
    """Nobody ever leaves."""

    def available(self, clients: IntArray, now_s: float) -> BoolArray:
        """All of them."""
        return np.ones(len(clients), dtype=np.bool_)

    def online_until_s(self, client: int, now_s: float) -> float:
        """For ever."""
        return math.inf

    def next_change_s(self, clients: int, now_s: float) -> float:
        """Never."""
        return math.inf


@final
@dataclass(frozen=True, kw_only=True)
class DutyCycle:
    """On for a time, off for a time, again and again; each client with its own phase and its own two times.

    Attributes:
        on_s, off_s: The two times.
        jitter_ratio: A client's times are uniform within this ratio of them, up and down.
        key: What belongs to a client derives from it.
    """

    on_s: float
    off_s: float
    jitter_ratio: float
    key: int

    def available(self, clients: IntArray, now_s: float) -> BoolArray:
        """Those whose place in their cycle is within its first part."""
        on_us, _, place_us = self._places(np.asarray(clients), now_s)
        return place_us < on_us

    def online_until_s(self, client: int, now_s: float) -> float:
        """The end of the first part of its cycle."""
        (on_us,), _, (place_us,) = self._places(np.array([client]), now_s)
        return to_seconds(to_micros(now_s) + on_us - place_us) if place_us < on_us else now_s

    def next_change_s(self, clients: int, now_s: float) -> float:
        """Exact: the earliest beginning of a cycle among those that are away."""
        on_us, cycle_us, place_us = self._places(np.arange(clients), now_s)
        rest_us = (cycle_us - place_us)[place_us >= on_us]
        return to_seconds(to_micros(now_s) + rest_us.min()) if len(rest_us) else math.inf

    def _places(self, clients: IntArray, now_s: float) -> tuple[IntArray, IntArray, IntArray]:
        """Length of each client's time online, of its whole cycle, and where it is in the cycle, in microseconds."""
        on_us, off_us = (
            self._jittered(clients, time_s, number) for number, time_s in enumerate((self.on_s, self.off_s))
        )
        cycle_us = on_us + off_us
        phase_us = hashed_below(self.key, cycle_us, clients, 2)
        return on_us, cycle_us, (to_micros(now_s) + phase_us) % cycle_us

    def _jittered(self, clients: IntArray, time_s: float, number: int) -> IntArray:
        if self.jitter_ratio == 0:
            return np.full(len(clients), max(to_micros(time_s), 1))
        factor = 1 + self.jitter_ratio * (2 * hashed_ratio(self.key, clients, number) - 1)
        return np.maximum(np.rint(1e6 * time_s * factor).astype(np.int64), 1)


@final
@dataclass(frozen=True, kw_only=True)
class RandomSlots:
    """Time in slots; in each slot a client is online with one probability, whatever it was before.

    Times online last a geometric number of slots, `slot_s` / (1 - `on_ratio`) on average, times away `slot_s` /
    `on_ratio`: what exponential times are in whole slots. Slots of different clients begin at different moments.

    Attributes:
        on_ratio: That probability, in (0, 1).
        slot_s: Length of a slot.
        key: What belongs to a client and a slot derives from it.
    """

    on_ratio: float
    slot_s: float
    key: int

    def available(self, clients: IntArray, now_s: float) -> BoolArray:
        """Those whose slot says so."""
        clients = np.asarray(clients)
        slot, _ = self._slots(clients, now_s)
        return self._online(clients, slot)

    def online_until_s(self, client: int, now_s: float) -> float:
        """The beginning of the first slot in which it is away (a time online longer than 2**20 slots is cut there)."""
        who = np.array([client])
        (slot,), (end_us,) = self._slots(who, now_s)
        ahead, looked = 0, 16
        while ahead < _MOST_SLOTS:
            away = np.flatnonzero(~self._online(who, slot + np.arange(ahead, ahead + looked)))
            if len(away):
                ahead += int(away[0])
                break
            ahead, looked = ahead + looked, 2 * looked
        return to_seconds(end_us + (ahead - 1) * to_micros(self.slot_s)) if ahead else now_s

    def next_change_s(self, clients: int, now_s: float) -> float:
        """Exact where somebody is back within 64 slots."""
        everyone = np.arange(clients)
        slot, end_us = self._slots(everyone, now_s)
        away = ~self._online(everyone, slot)
        everyone, slot, end_us = everyone[away], slot[away], end_us[away]
        if not len(everyone):
            return math.inf
        for ahead in range(1, _NEXT_SLOTS + 1):
            back = self._online(everyone, slot + ahead)
            if back.any():
                break
        # Whoever comes back after fewer slots comes back first: all ends of slots lie within one slot from now.
        first_us = end_us[back].min() if back.any() else end_us.min()
        return to_seconds(first_us + (ahead - 1) * to_micros(self.slot_s))

    def _slots(self, clients: IntArray, now_s: float) -> tuple[IntArray, IntArray]:
        """The slot that each client is in, and its end in microseconds."""
        slot_us, now_us = to_micros(self.slot_s), to_micros(now_s)
        shifted_us = now_us + hashed_below(self.key, slot_us, clients)
        slot = shifted_us // slot_us
        return slot, now_us + (slot + 1) * slot_us - shifted_us

    def _online(self, clients: IntArray, slot: IntArray) -> BoolArray:
        return hashed_ratio(self.key, clients, slot) < self.on_ratio
