"""What memory each client promises and has, in bytes of this run's step."""

from __future__ import annotations

from functools import cached_property, partial
from typing import final

import numpy as np

from fedhybrid.engine.walk import LeftMemory
from fedhybrid.fleet import Fleet
from fedhybrid.records import IntArray

__all__ = ["Budgets"]


@final
class Budgets:
    """The fleet's budgets for a step of so many resident bytes and such a peak (per cent budgets depend on them)."""

    def __init__(self, fleet: Fleet, *, resident_bytes: int, eager_peak_bytes: int) -> None:
        self._fleet, self._resident_bytes, self._eager_peak_bytes = fleet, resident_bytes, eager_peak_bytes

    @property
    def move(self) -> bool:
        """Whether they change in time."""
        return self._fleet.memory is not None

    @cached_property
    def most(self) -> IntArray:
        """The largest that each client ever promises."""
        return self._fleet.budgets(resident_bytes=self._resident_bytes, eager_peak_bytes=self._eager_peak_bytes)

    def promised(self, clients: IntArray, now_s: float) -> IntArray:
        """What these clients promise for a task that begins now."""
        most = self._most(clients)
        memory = self._fleet.memory
        return most if memory is None else memory.promise(clients, now_s, budget_bytes=most)

    def promised_one(self, client: int, now_s: float) -> int:
        """What one client promises."""
        return int(self.promised(np.array([client], dtype=np.int64), now_s)[0])

    def left(self, client: int) -> LeftMemory | None:
        """What the client's other apps leave at any time; None where budgets stand still."""
        memory = self._fleet.memory
        if memory is None:
            return None
        return partial(memory.left_over, client, budget_bytes=int(self._most(np.array([client], dtype=np.int64))[0]))

    def speed_factor(self, client: int) -> float:
        """Seconds on this very device, to those of its profile."""
        return float(self._fleet.speed_factor(np.array([client], dtype=np.int64))[0])

    def _most(self, clients: IntArray) -> IntArray:
        return self._fleet.budget_bytes(
            clients, resident_bytes=self._resident_bytes, eager_peak_bytes=self._eager_peak_bytes
        )
