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

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedhybrid.errors import ConfigError
from fedhybrid.protocols import CandidateView, PolicyState
from fedhybrid.records import FloatArray, IntArray, Outcome
from fedhybrid.selection.arms import Arms, empty_arms, lookup_arms, updated_arms
from fedhybrid.selection.sampling import pick, round_rng

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
            f"policy option {name} must be one of {', '.join(choices)}, got {value!r}"
            for name, value, choices in (("stat", self.stat, _STATS), ("score", self.score, _SCORES))
            if value not in choices
        ]
        problems += [
            f"policy option {name} must be in [0, 1], got {value}"
            for name, value in (
                ("exploration_ratio", self.exploration_ratio),
                ("exploration_decay", self.exploration_decay),
                ("exploration_floor_ratio", self.exploration_floor_ratio),
            )
            if not 0 <= value <= 1
        ]
        if not (math.isfinite(self.bonus) and self.bonus >= 0):
            problems.append(f"policy option bonus must be at least 0, got {self.bonus}")
        if not 0 < self.clip_percentile <= 100:
            problems.append(f"policy option clip_percentile must be in (0, 100], got {self.clip_percentile}")
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
        # Rounded up, and in this form, so that 10 * 0.9 is 9 explored: 10 * (1 - 0.9) is a little below 1.
        exploited = count - math.ceil(count * self.exploration_share_ratio(round_index) - 1e-9)
        exploited = min(max(exploited, count - len(untried)), len(tried))
        score = self.scores(candidates, arms, fit, round_index)[arms.tried]
        best = tried[np.lexsort((rng.random(len(tried)), -score))[:exploited]]
        explored = pick(untried, count - exploited, rng)
        return np.sort(candidates.client[np.concatenate([best, explored])]), state

    def observe(self, outcomes: Sequence[Outcome], state: PolicyState) -> PolicyState:
        """Remembers losses and participations."""
        return updated_arms(outcomes, state)

    def exploration_share_ratio(self, round_index: int) -> float:
        """Share of the cohort for untried clients in round `round_index` (the first is 0)."""
        return max(self.exploration_floor_ratio, self.exploration_ratio * self.exploration_decay**round_index)

    def scores(self, candidates: CandidateView, arms: Arms, rows: IntArray, round_index: int) -> FloatArray:
        """Normalised utility plus bonus of the candidates in `rows`; means nothing where a client is untried."""
        utility = np.nan_to_num(self._utility(candidates, arms, rows), nan=0.0)
        log_round = math.log(round_index + 1)
        if self.score == "ucb1":
            bonus = self.bonus * np.sqrt(2 * log_round / arms.times)
        else:
            bonus = np.sqrt(self.bonus * log_round / arms.last_round)
        return self._normalised(utility, arms.tried) + bonus

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

    def _normalised(self, utility: FloatArray, tried: np.ndarray) -> FloatArray:
        """To [0, 1] between the lowest and the clip percentile of the tried clients; all 1 where they do not differ."""
        if not tried.any():
            return np.ones_like(utility)
        low = float(utility[tried].min())
        high = float(np.percentile(utility[tried], self.clip_percentile))
        if high <= low:
            return np.ones_like(utility)
        normalised: FloatArray = np.clip((utility - low) / (high - low), 0.0, 1.0)
        return normalised
