"""A uniform sample of the clients that could be given a task now, in a time that does not grow with the fleet."""

from __future__ import annotations

import math
from collections.abc import Set as AbstractSet

import numpy as np

from fedhybrid.fleet.fleet import Fleet
from fedhybrid.records import IntArray

__all__ = ["free_clients", "sample_available"]

_WORTH = 4  # trying costs less than looking at all clients while a quarter as many numbers were drawn


def sample_available(
    fleet: Fleet, count: int, now_s: float, rng: np.random.Generator, busy: AbstractSet[int] = frozenset()
) -> IntArray:
    """At most `count` clients that are online at `now_s` and not in `busy`, without repeats, in ascending order.

    All sets of that size are equally likely. Where most clients are free, as many numbers as are needed are drawn and
    those that do not serve are dropped; where that takes too many, all clients are looked at once. Fewer than `count`
    come back only where no more are free.

    Args:
        fleet: Whose clients.
        count: How many.
        now_s: The time.
        rng: Moves on by a number of draws that depends on what it gives.
        busy: Clients that have a task.
    """
    taken = np.fromiter(busy, dtype=np.int64, count=len(busy))
    tries = _tried(fleet, count, now_s, rng, taken)
    if tries is not None:
        return np.sort(tries)
    free = free_clients(fleet, now_s, busy)
    return np.sort(rng.choice(free, size=min(count, len(free)), replace=False, shuffle=False))


def free_clients(fleet: Fleet, now_s: float, busy: AbstractSet[int] = frozenset()) -> IntArray:
    """All clients that are online at `now_s` and not in `busy`, ascending; looks at the whole fleet."""
    every = np.arange(len(fleet), dtype=np.int64)
    free = np.array(fleet.available(every, now_s))
    free[np.fromiter(busy, dtype=np.int64, count=len(busy))] = False
    return every[free]


def _tried(fleet: Fleet, count: int, now_s: float, rng: np.random.Generator, taken: IntArray) -> IntArray | None:
    """The first `count` different free clients in a row of random numbers; None where the row gets too long.

    Whether it does says nothing about who is in it: every free client has the same part in that.
    """
    most = len(fleet) // _WORTH
    found: IntArray = np.empty(0, dtype=np.int64)
    drawn = 0
    while len(found) < count:
        ratio = max(len(found), 1) / drawn if drawn else 1.0
        wanted = math.ceil(1.1 * (count - len(found)) / ratio) + 16
        if drawn + wanted > most:
            return None
        clients = rng.integers(len(fleet), size=wanted)
        drawn += wanted
        free = fleet.available(clients, now_s)
        if len(taken):
            free &= ~np.isin(clients, taken)
        both = np.concatenate([found, clients[free]])
        _, first = np.unique(both, return_index=True)
        found = both[np.sort(first)]
    return found[:count]
