"""Round-robin: every fit client once before anyone twice, in an order drawn once for the whole run.

Source: ours. What simulations offer under this name (pfl-research's `minimize_reuse`) walks along the list of clients;
the cohorts of a fleet that is listed by person, place or device are then all of one kind.

How: each client number is mixed with a key of the run into a 64-bit word (the finaliser of SplitMix64, G. Steele,
D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014: one to one, so that no two are equal);
that word is the client's place in the order. A cohort is those fit candidates with the smallest words that have not had
their turn. Whoever is away or unfit keeps the turn and has it when back, as long as the pass lasts; a pass ends when no
fit candidate is left in it, and the next one has the same order, so that turns are as far apart as can be.

The state holds the key and who has had a turn in this pass. A selection costs one pass over the candidates.
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

__all__ = ["RoundRobin"]


@dataclass(frozen=True, kw_only=True)
class RoundRobin:
    """Gives every fit client one turn before anyone gets a second; the module's text says in what order.

    Attributes:
        memory_gate: Who is fit: "planned" can run its task as it would, "unplanned" holds the step without any plan,
            "none" is everybody.
    """

    memory_gate: str = "planned"

    def __post_init__(self) -> None:
        if problems := choice_problems("memory_gate", self.memory_gate, MEMORY_GATES):
            raise ConfigError(problems)

    def init(self) -> PolicyState:
        """No order yet, nobody had a turn."""
        return {"key": None, "had_turn": []}

    def select(
        self, candidates: CandidateView, count: int, state: PolicyState, *, round_index: int, seed: int
    ) -> tuple[IntArray, PolicyState]:
        """At most `count` fit candidates, those who are next."""
        # Seeds may differ from round to round; the order may not.
        key = derive_seed(seed, purpose="round-robin") if state["key"] is None else state["key"]
        fit = candidates.client[admitted_rows(candidates, self.memory_gate)]
        had_turn = np.asarray(state["had_turn"], dtype=np.int64)
        waiting = fit[~_among(fit, had_turn)]
        cohort = np.sort(first_drawn(waiting, count, key))
        if len(cohort) < min(count, len(fit)):  # this pass is over, another begins with the places that are left
            had_turn = np.sort(first_drawn(fit[~_among(fit, cohort)], count - len(cohort), key))
            cohort = np.union1d(cohort, had_turn)
        else:
            had_turn = np.union1d(had_turn, cohort)
        return cohort, {"key": key, "had_turn": had_turn.tolist()}

    def observe(self, outcomes: Sequence[Outcome], state: PolicyState) -> PolicyState:
        """A turn is a turn, whatever comes of it."""
        return state


def _among(clients: IntArray, some: IntArray) -> np.ndarray:
    """Whether each of `clients` is in `some`; both ascending."""
    place = np.searchsorted(clients, some)
    inside = place < len(clients)
    place, some = place[inside], some[inside]
    found = np.zeros(len(clients), dtype=bool)
    found[place[clients[place] == some]] = True
    return found
