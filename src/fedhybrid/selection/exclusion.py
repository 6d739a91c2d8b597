"""Exclusion: only devices that hold the unplanned step take part; the others' data are lost.

Source: the baseline of K. Tam et al., "FedHybrid", SenSys 2024 (see `selection/fedhybrid.py`): what systems do that
check memory and have no plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedhybrid.protocols import CandidateView, PolicyState
from fedhybrid.records import IntArray, Outcome
from fedhybrid.selection.sampling import pick, round_rng

__all__ = ["Exclusion"]


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """Draws the cohort uniformly among candidates with `budget_bytes >= unplanned_bytes`; keeps no state."""

    def init(self) -> PolicyState:
        """Nothing to remember."""
        return {}

    def select(
        self, candidates: CandidateView, count: int, state: PolicyState, *, round_index: int, seed: int
    ) -> tuple[IntArray, PolicyState]:
        """At most `count` candidates that hold the unplanned step."""
        fit = candidates.budget_bytes >= candidates.unplanned_bytes
        return pick(candidates.client[fit], count, round_rng(seed, round_index)), state

    def observe(self, outcomes: Sequence[Outcome], state: PolicyState) -> PolicyState:
        """Nothing to learn."""
        return state
