"""Exclusion: only devices that hold the unplanned step take part; the others' data are lost.

Source: the baseline of K. Tam et al., "FedHybrid", SenSys 2024 (see `selection/fedhybrid.py`): what systems do that
check memory and have no plans. With another gate it is uniform selection for methods that make the step smaller: only
who cannot do even that is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedhybrid.errors import ConfigError
from fedhybrid.protocols import CandidateView, PolicyState
from fedhybrid.records import IntArray, Outcome
from fedhybrid.selection.gates import MEMORY_GATES, admitted_rows
from fedhybrid.selection.options import choice_problems
from fedhybrid.selection.sampling import pick, round_rng

__all__ = ["Exclusion"]


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """Draws the cohort uniformly among the devices whose memory is enough; keeps no state.

    Attributes:
        memory_gate: What is enough: "unplanned" for the step without any plan, "planned" for what the method has the
            device do, "none" anything.
    """

    memory_gate: str = "unplanned"

    def __post_init__(self) -> None:
        if problems := choice_problems("memory_gate", self.memory_gate, MEMORY_GATES):
            raise ConfigError(problems)

    def init(self) -> PolicyState:
        """Nothing to remember."""
        return {}

    def select(
        self, candidates: CandidateView, count: int, state: PolicyState, *, round_index: int, seed: int
    ) -> tuple[IntArray, PolicyState]:
        """At most `count` candidates that pass."""
        fit = admitted_rows(candidates, self.memory_gate)
        return pick(candidates.client[fit], count, round_rng(seed, round_index)), state

    def observe(self, outcomes: Sequence[Outcome], state: PolicyState) -> PolicyState:
        """Nothing to learn."""
        return state
