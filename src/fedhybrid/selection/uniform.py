"""Uniform selection: every candidate alike, whatever its memory.

Source: H. B. McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
https://arxiv.org/abs/1602.05629, Algorithm 1. It is what most simulations do; a client that cannot hold the step is
picked all the same, and fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedhybrid.protocols import CandidateView, PolicyState
from fedhybrid.records import IntArray, Outcome
from fedhybrid.selection.sampling import round_rng

__all__ = ["Uniform"]


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Draws the cohort among all candidates, whatever their memory; without replacement, without state."""

    def init(self) -> PolicyState:
        """Nothing to remember."""
        return {}

    def select(
        self, candidates: CandidateView, count: int, state: PolicyState, *, round_index: int, seed: int
    ) -> tuple[IntArray, PolicyState]:
        """At most `count` candidates, all alike."""
        return candidates.sample(count, round_rng(seed, round_index)), state

    def observe(self, outcomes: Sequence[Outcome], state: PolicyState) -> PolicyState:
        """Nothing to learn."""
        return state
