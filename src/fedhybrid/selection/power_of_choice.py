"""Power-of-choice: of a few clients drawn by data size, those whose loss is highest.

Source: Y. J. Cho, J. Wang, G. Joshi, "Towards Understanding Biased Client Selection in Federated Learning", AISTATS
2022, https://arxiv.org/abs/2010.01243.

Follows: its variant rpow-d, which costs no extra message: d candidates are drawn without replacement with probability
proportional to their number of samples; the cohort is those with the highest loss that they last reported, infinite
where they have not taken part yet; ties at random.

Differs:
- What clients report here is the mean of their samples' squared losses; its square root stands for the mean loss. It is
  never below it and weighs hard samples more.
- A client that took part and never came back with a loss counts as the lowest, not as infinite: one that cannot hold
  the step would be chosen whenever it is drawn. (In the paper nobody fails.)
- d is given as a multiple of the cohort, so that one setting serves all cohort sizes.
- `memory_gate`, which the paper does not have; "none", as it is without, is the default.

Drawing by size needs every candidate's number of samples: one pass over the fleet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedhybrid.errors import ConfigError
from fedhybrid.protocols import CandidateView, PolicyState
from fedhybrid.records import IntArray, Outcome
from fedhybrid.selection.arms import empty_arms, lookup_arms, updated_arms
from fedhybrid.selection.gates import MEMORY_GATES, admitted_rows
from fedhybrid.selection.options import choice_problems, least_problems
from fedhybrid.selection.sampling import best, pick_weighted, round_rng

__all__ = ["PowerOfChoice"]


@dataclass(frozen=True, kw_only=True)
class PowerOfChoice:
    """Draws some clients by data size and keeps those with the highest loss.

    Attributes:
        drawn_per_place: d of the paper, as a multiple of the cohort's size; 1 is sampling by data size.
        memory_gate: Who is drawn from: "none" is everybody with data, "planned" those that can run their task as they
            would, "unplanned" those that hold the step without any plan.
    """

    drawn_per_place: float = 3.0
    memory_gate: str = "none"

    def __post_init__(self) -> None:
        problems = [
            *least_problems(1, drawn_per_place=self.drawn_per_place),
            *choice_problems("memory_gate", self.memory_gate, MEMORY_GATES),
        ]
        if problems:
            raise ConfigError(problems)

    def init(self) -> PolicyState:
        """No loss known yet."""
        return empty_arms()

    def select(
        self, candidates: CandidateView, count: int, state: PolicyState, *, round_index: int, seed: int
    ) -> tuple[IntArray, PolicyState]:
        """At most `count` candidates with data."""
        rng = round_rng(seed, round_index)
        rows = admitted_rows(candidates, self.memory_gate)
        num_samples = candidates.num_samples[rows]
        rows, num_samples = rows[num_samples > 0], num_samples[num_samples > 0]
        # The slack keeps 3 * 0.1 / 0.1 and the like from becoming one more.
        drawn_count = math.ceil(count * self.drawn_per_place - 1e-9)
        drawn = candidates.client[pick_weighted(rows, num_samples.astype(np.float64), drawn_count, rng)]
        arms = lookup_arms(drawn, state)
        loss = np.where(arms.tried, np.nan_to_num(np.sqrt(arms.squared_loss_mean), nan=-1.0), np.inf)
        return np.sort(best(drawn, loss, count, rng)), state

    def observe(self, outcomes: Sequence[Outcome], state: PolicyState) -> PolicyState:
        """Remembers losses."""
        return updated_arms(outcomes, state)
