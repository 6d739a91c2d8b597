"""What a bandit remembers of the clients that it has tried, as JSON lists outside and as arrays inside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedhybrid.protocols import PolicyState
from fedhybrid.records import FloatArray, IntArray, Outcome

__all__ = ["Arms", "empty_arms", "lookup_arms", "updated_arms"]

_COLUMNS = ("client", "squared_loss_mean", "num_samples", "last_round", "times")


@dataclass(frozen=True, kw_only=True, eq=False)
class Arms:
    """One entry per asked client.

    Attributes:
        tried: Whether the client has ever taken part.
        squared_loss_mean: Of its last task that came back with one; NaN where none has.
        num_samples: Of that task.
        last_round: Number of the round of its last participation, the first round being 1; 1 if never tried.
        times: How often it took part; 1 if never tried.
    """

    tried: np.ndarray
    squared_loss_mean: FloatArray
    num_samples: FloatArray
    last_round: FloatArray
    times: FloatArray


def empty_arms() -> PolicyState:
    """No client tried yet."""
    return {column: [] for column in _COLUMNS}


def lookup_arms(clients: IntArray, state: PolicyState) -> Arms:
    """The arms of `clients`."""
    known = np.asarray(state["client"], dtype=np.int64)
    place = np.searchsorted(known, clients)
    tried = np.zeros(len(clients), dtype=bool)
    inside = place < len(known)
    tried[inside] = known[place[inside]] == clients[inside]

    def column(name: str, otherwise: float) -> FloatArray:
        values = np.full(len(clients), otherwise)
        values[tried] = np.asarray(state[name], dtype=np.float64)[place[tried]]  # JSON's null becomes NaN
        return values

    return Arms(
        tried=tried,
        squared_loss_mean=column("squared_loss_mean", math.nan),
        num_samples=column("num_samples", 0.0),
        last_round=column("last_round", 1.0),
        times=column("times", 1.0),
    )


def updated_arms(outcomes: Sequence[Outcome], state: PolicyState) -> PolicyState:
    """The state after these outcomes; a task without a finite loss counts as a participation and keeps the old loss."""
    rows = dict(zip(state["client"], zip(*(state[column] for column in _COLUMNS[1:]), strict=True), strict=True))
    for outcome in outcomes:
        loss, samples, last_round, times = rows.get(outcome.client, (None, 0, 1, 0))
        if outcome.squared_loss_mean is not None and math.isfinite(outcome.squared_loss_mean):
            loss, samples = outcome.squared_loss_mean, outcome.num_samples
        rows[outcome.client] = (loss, samples, max(last_round, outcome.round_index + 1), times + 1)
    new: PolicyState = dict(state)
    ordered = sorted(rows.items())
    new["client"] = [client for client, _ in ordered]
    for i, column in enumerate(_COLUMNS[1:]):
        new[column] = [row[i] for _, row in ordered]
    return new
