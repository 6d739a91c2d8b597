"""What a selection policy sees and offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from fedhybrid.records import FloatArray, IntArray, Outcome

__all__ = ["CandidateView", "Policy", "PolicyState"]

PolicyState = dict[str, Any]  # JSON only, so that a run can be resumed


class CandidateView(Protocol):
    """The clients that may be selected now; `records.Candidates` says what each column means.

    A column is made when it is first asked for: a policy that asks for none costs the same for ten clients and for a
    million.
    """

    def __len__(self) -> int:
        """An upper bound of how many there are: of a large fleet nobody counts who is away."""
        ...

    def sample(self, count: int, rng: np.random.Generator) -> IntArray:
        """At most `count` of the clients without replacement, all alike, in ascending order."""
        ...

    @property
    def client(self) -> IntArray:
        """Client numbers, ascending; all other columns are in this order."""
        ...

    @property
    def tier(self) -> IntArray:
        """Index of each client's tier."""
        ...

    @property
    def budget_bytes(self) -> IntArray:
        """What each client promises for the coming round."""
        ...

    @property
    def num_samples(self) -> IntArray:
        """Training samples that each client holds."""
        ...

    @property
    def label_counts(self) -> IntArray:
        """Samples of each class that each client holds, (clients, classes); no column where nobody has said so."""
        ...

    @property
    def unplanned_bytes(self) -> int:
        """Peak of the step without any plan."""
        ...

    @property
    def smallest_bytes(self) -> int:
        """Smallest peak that the step can be run in."""
        ...

    @property
    def step_s(self) -> FloatArray:
        """Predicted seconds of one step as each client would run it; infinity where it cannot."""
        ...

    @property
    def kernel_s(self) -> FloatArray:
        """Sum over the model's distinct operators of their seconds on each client's device."""
        ...

    @property
    def round_s(self) -> FloatArray:
        """Predicted seconds of each client's whole task; infinity where it cannot."""
        ...


class Policy(Protocol):
    """Chooses each round's cohort among the candidates; its state goes in and comes out."""

    def init(self) -> PolicyState:
        """The state before the first round."""
        ...

    def select(
        self, candidates: CandidateView, count: int, state: PolicyState, *, round_index: int, seed: int
    ) -> tuple[IntArray, PolicyState]:
        """At most `count` distinct client numbers (fewer when fewer are fit), and the new state."""
        ...

    def observe(self, outcomes: Sequence[Outcome], state: PolicyState) -> PolicyState:
        """The state after the round's outcomes are known."""
        ...
