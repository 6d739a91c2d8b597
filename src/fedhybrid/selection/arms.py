"""What a bandit remembers of the clients that it has tried, as JSON lists outside and as arrays inside."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from fedhybrid.protocols import PolicyState
from fedhybrid.records import COMPLETED, FloatArray, IntArray, Outcome

__all__ = ["Arms", "empty_arms", "lookup_arms", "updated_arms"]

_COLUMNS: Final = ("client", "squared_loss_mean", "num_samples", "last_round", "times", "completed")
_FRESH: Final = (None, 0, 1, 0, 0)  # of a client that was never tried, all columns but its number


@dataclass(frozen=True, kw_only=True, eq=False)
class Arms:
    """One entry per asked client; a column is made when it is asked for.

    Attributes:
        tried: Whether the client has ever taken part.
        places: Where the tried ones stand in the state's lists.
        state: The policy's.
    """

    tried: np.ndarray
    places: IntArray
    state: PolicyState

    @property
    def squared_loss_mean(self) -> FloatArray:
        """Of its last task that came back with one; NaN where none has."""
        return self._column("squared_loss_mean", math.nan)

    @property
    def num_samples(self) -> FloatArray:
        """Of that task; 0 where none has."""
        return self._column("num_samples", 0.0)

    @property
    def last_round(self) -> FloatArray:
        """Number of the round of its last participation, the first round being 1; 1 if never tried."""
        return self._column("last_round", 1.0)

    @property
    def times(self) -> FloatArray:
        """How often it took part; 0 if never tried."""
        return self._column("times", 0.0)

    @property
    def completed(self) -> FloatArray:
        """How often it came back with an update; 0 if never tried."""
        return self._column("completed", 0.0)

    def of_tried(self) -> Arms:
        """The same without the clients that were never tried."""
        return Arms(tried=np.ones(len(self.places), dtype=bool), places=self.places, state=self.state)

    def _column(self, name: str, otherwise: float) -> FloatArray:
        values = np.full(len(self.tried), otherwise)
        values[self.tried] = np.asarray(self.state[name], dtype=np.float64)[self.places]  # JSON's null becomes NaN
        return values


def empty_arms() -> PolicyState:
    """No client tried yet."""
    return {column: [] for column in _COLUMNS}


def lookup_arms(clients: IntArray, state: PolicyState) -> Arms:
    """The arms of `clients`, which must be ascending; costs the number of clients ever tried, times a logarithm."""
    known = np.asarray(state["client"], dtype=np.int64)
    # Few are looked for among many: a fleet is larger than what of it was ever tried.
    place = np.searchsorted(clients, known)
    found = place < len(clients)
    found[found] = clients[place[found]] == known[found]
    tried = np.zeros(len(clients), dtype=bool)
    tried[place[found]] = True
    return Arms(tried=tried, places=np.flatnonzero(found), state=state)


def updated_arms(outcomes: Sequence[Outcome], state: PolicyState) -> PolicyState:
    """The state after these outcomes; a task without a finite loss counts as a participation and keeps the old loss.

    Costs a copy of the lists (pointers, no numbers) and a few operations for each outcome.
    """
    clients: list[int] = state["client"]
    place = {outcome.client: bisect_left(clients, outcome.client) for outcome in outcomes}
    known = {client for client, at in place.items() if at < len(clients) and clients[at] == client}
    rows: dict[int, tuple[Any, ...]] = {
        client: tuple(state[column][at] for column in _COLUMNS[1:]) if client in known else _FRESH
        for client, at in place.items()
    }
    for outcome in outcomes:
        loss, samples, last_round, times, completed = rows[outcome.client]
        if outcome.squared_loss_mean is not None and math.isfinite(outcome.squared_loss_mean):
            loss, samples = outcome.squared_loss_mean, outcome.num_samples
        last_round = max(last_round, outcome.round_index + 1)
        rows[outcome.client] = (loss, samples, last_round, times + 1, completed + (outcome.kind == COMPLETED))
    added = sorted(set(rows) - known)
    new: PolicyState = dict(state)
    for i, column in enumerate(_COLUMNS):
        values = list(state[column])
        for client in known if i else ():
            values[place[client]] = rows[client][i - 1]
        new[column] = _inserted(values, [place[c] for c in added], [rows[c][i - 1] if i else c for c in added])
    return new


def _inserted(values: list[Any], places: list[int], added: list[Any]) -> list[Any]:
    """`values` with each of `added` put before what stands at its place; places ascending."""
    pieces = [values[start:end] for start, end in pairwise([0, *places, len(values)])]
    merged = pieces[0]
    for value, piece in zip(added, pieces[1:], strict=True):
        merged.append(value)
        merged += piece
    return merged
