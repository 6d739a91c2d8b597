"""First come, first served: idle devices ask for work and wait in one queue until the server has a place for them.

Source: ours, for methods whose devices ask instead of being chosen, such as TEA-Fed (C. Zhou, H. Tian, H. Zhang,
J. Zhang, M. Dong, J. Jia, Computing Frontiers 2021, https://doi.org/10.1145/3457388.3458655).

How: all devices have been idle since the run began, in an order drawn once for the whole run (each number is mixed
with a key of the run into a word, as in `round_robin`). A device whose task has ended, however it has, goes to the end
of the queue. The schedule's cap says how many are admitted: with `kind = "asynchronous"` whoever is first gets a place
as soon as one is free. Who is offline or unfit just then is passed over and keeps its place.

A server that refuses instead, so that devices ask again after random delays, needs no queue: with exponential delays
the next one to ask is any of the idle devices with equal probability, whatever the past was. That is the policy
`uniform`.

The state holds the key and the queue of those who have had a task; the others come before them. A selection costs one
pass over the candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedhybrid.errors import ConfigError
from fedhybrid.protocols import CandidateView, PolicyState
from fedhybrid.records import IntArray, Outcome
from fedhybrid.seeds import derive_seed
from fedhybrid.selection.drawn import first_drawn
from fedhybrid.selection.gates import MEMORY_GATES, admitted_rows
from fedhybrid.selection.options import choice_problems

__all__ = ["FirstCome"]


@dataclass(frozen=True, kw_only=True)
class FirstCome:
    """Serves idle devices in the order in which they became idle; the module's text says how.

    Attributes:
        memory_gate: Who is fit: "planned" can run its task as it would, "unplanned" holds the step without any plan,
            "none" is everybody.
    """

    memory_gate: str = "planned"

    def __post_init__(self) -> None:
        if problems := choice_problems("memory_gate", self.memory_gate, MEMORY_GATES):
            raise ConfigError(problems)

    def init(self) -> PolicyState:
        """No order yet, nobody has had a task."""
        return {"key": None, "queue": []}

    def select(
        self, candidates: CandidateView, count: int, state: PolicyState, *, round_index: int, seed: int
    ) -> tuple[IntArray, PolicyState]:
        """The first fit candidates, at most `count`."""
        key = derive_seed(seed, purpose="first-come") if state["key"] is None else state["key"]
        fit = candidates.client[admitted_rows(candidates, self.memory_gate)].astype(np.int64)
        queue = np.asarray(state["queue"], dtype=np.int64)
        cohort = first_drawn(np.setdiff1d(fit, queue, assume_unique=True), count, key)
        served = queue[np.isin(queue, fit)][: max(count - len(cohort), 0)]
        cohort = np.concatenate([cohort, served])
        # Who has a task is no candidate; should nobody ever say how it ended, this is the place that is left.
        return np.sort(cohort), {"key": key, "queue": _moved_to_end(state["queue"], cohort.tolist())}

    def observe(self, outcomes: Sequence[Outcome], state: PolicyState) -> PolicyState:
        """Who has ended a task is idle again, and last."""
        return {**state, "queue": _moved_to_end(state["queue"], [outcome.client for outcome in outcomes])}


def _moved_to_end(queue: Sequence[int], clients: Sequence[int]) -> list[int]:
    last = dict.fromkeys(clients)
    return [client for client in queue if client not in last] + list(last)
