"""FedHybrid's selection: by memory, computing speed and what a client's data still teach, as a bandit.

Source: K. Tam, C. Tian, L. Li, H. Zhao, C. Xu, "FedHybrid: Breaking the Memory Wall of Federated Learning via Hybrid
Tensor Management", ACM SenSys 2024, pp. 394-408, https://arxiv.org/abs/2510.11400. It builds on F. Lai et al., "Oort:
Efficient Federated Learning via Guided Participant Selection", OSDI 2021, https://arxiv.org/abs/2010.06081.

Follows the paper: the utility of a client is Stat * MemStat * CompStat with Stat the mean squared loss of its samples,
MemStat its memory against what the unplanned step needs, CompStat the reciprocal of the summed mean times of the
model's unique operators on its device; an upper-confidence bandit chooses.

RECONSTRUCTED (the public text is silent or contradicts itself):
- The memory term, printed twice with its indicator in opposite directions, is read as a gate and a factor: clients
  below the smallest reachable peak are dropped, the others weighted by min(1, budget / unplanned peak).
- `stat="oort"` weights by the number of samples, as Oort does: |B| * sqrt(mean square).
- Bonus `score="last-round"` is Oort's, sqrt(c ln R / L) with R the round and L the client's last one, c = 0.1, on
  utilities normalised to [0, 1] over tried clients and clipped at their 95th percentile; `score="ucb1"` is the
  textbook's, c sqrt(2 ln R / n) with n participations.
- Exploration, as in Oort: a share of the cohort, 0.9 at first, times 0.98 each round, never below 0.2, goes to clients
  that were never tried, drawn uniformly (Oort prefers fast ones); the rest go to the highest scores, ties at random.
- A client whose tasks never came back with a loss counts as tried, with the lowest utility.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedhybrid.errors import ConfigError
from fedhybrid.protocols import CandidateView, PolicyState
from fedhybrid.records import FloatArray, IntArray, Outcome
from fedhybrid.selection.arms import Arms, empty_arms, lookup_arms, updated_arms
from fedhybrid.selection.bandit import (
    count_bonus,
    exploited_places,
    exploration_share_ratio,
    last_round_bonus,
    normalised,
)
from fedhybrid.selection.options import choice_problems, least_problems, percentile_problems, ratio_problems
from fedhybrid.selection.sampling import best, pick, round_rng

__all__ = ["FedHybridSelection"]

_STATS = ("mean", "oort")
_SCORES = ("last-round", "ucb1")


@dataclass(frozen=True, kw_only=True)
class FedHybridSelection:
    """Prefers clients by memory, speed and loss, as a bandit; the module's text says what each option does.

    Attributes:
        stat: "mean" or "oort".
        score: "last-round" or "ucb1".
        bonus: c in the bonus.
        exploration_ratio: Share of the cohort for untried clients in the first round.
        exploration_decay: Factor on that share from round to round.
        exploration_floor_ratio: Its lowest value.
        clip_percentile: Utilities above this percentile of the tried clients count as it.
    """

    stat: str = "mean"
    score: str = "last-round"
    bonus: float = 0.1
    exploration_ratio: float = 0.9
    exploration_decay: float = 0.98
    exploration_floor_ratio: float = 0.2
    clip_percentile: float = 95.0

    def __post_init__(self) -> None:
        problems = [
            *choice_problems("stat", self.stat, _STATS),
            *choice_problems("score", self.score, _SCORES),
            *ratio_problems(
                exploration_ratio=self.exploration_ratio,
                exploration_decay=self.exploration_decay,
                exploration_floor_ratio=self.exploration_floor_ratio,
            ),
            *least_problems(0, bonus=self.bonus),
            *percentile_problems(clip_percentile=self.clip_percentile),
        ]
        if problems:
            raise ConfigError(problems)

    def init(self) -> PolicyState:
        """No client tried yet."""
        return empty_arms()

    def select(
        self, candidates: CandidateView, count: int, state: PolicyState, *, round_index: int, seed: int
    ) -> tuple[IntArray, PolicyState]:
        """At most `count` candidates that some plan fits: untried ones for the exploration share, else the best."""
        rng = round_rng(seed, round_index)
        # A client may hold the smallest peak and yet have no plan for its budget: its step time is infinite then.
        fit = np.flatnonzero((candidates.budget_bytes >= candidates.smallest_bytes) & np.isfinite(candidates.step_s))
        arms = lookup_arms(candidates.client[fit], state)
        untried, tried = fit[~arms.tried], fit[arms.tried]
        count = min(count, len(fit))
        exploited = exploited_places(
            count,
            self.exploration_share_ratio(round_index),
            tried=len(tried),
            untried=len(untried),
            rng=rng if count == 1 else None,  # rounded up, one place alone would always go to an untried client
        )
        score = self.scores(candidates, arms.of_tried(), tried, round_index)
        chosen = best(tried, score, exploited, rng)
        explored = pick(untried, count - exploited, rng)
        return np.sort(candidates.client[np.concatenate([chosen, explored])]), state

    def observe(self, outcomes: Sequence[Outcome], state: PolicyState) -> PolicyState:
        """Remembers losses and participations."""
        return updated_arms(outcomes, state)

    def exploration_share_ratio(self, round_index: int) -> float:
        """Share of the cohort for untried clients in round `round_index` (the first is 0)."""
        return exploration_share_ratio(
            round_index,
            first_ratio=self.exploration_ratio,
            decay=self.exploration_decay,
            floor_ratio=self.exploration_floor_ratio,
        )

    def scores(self, candidates: CandidateView, arms: Arms, rows: IntArray, round_index: int) -> FloatArray:
        """Normalised utility plus bonus of the candidates in `rows`; means nothing where a client is untried."""
        utility = np.nan_to_num(self._utility(candidates, arms, rows), nan=0.0)
        if self.score == "ucb1":
            bonus = count_bonus(self.bonus, arms.times, round_index)
        else:
            bonus = last_round_bonus(self.bonus, arms.last_round, round_index)
        return normalised(utility, arms.tried, self.clip_percentile) + bonus

    def _utility(self, candidates: CandidateView, arms: Arms, rows: IntArray) -> FloatArray:
        """Stat * MemStat * CompStat; NaN where no loss is known."""
        stat = arms.squared_loss_mean
        if self.stat == "oort":
            stat = arms.num_samples * np.sqrt(stat)
        mem_stat = np.minimum(1.0, candidates.budget_bytes[rows] / candidates.unplanned_bytes)
        # A picosecond stands for no time at all, so that the utility stays finite.
        comp_stat = 1.0 / np.maximum(candidates.kernel_s[rows], 1e-12)
        product: FloatArray = stat * mem_stat * comp_stat
        return product
