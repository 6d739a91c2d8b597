"""SmartSplit's central manager: prefers clients with much to teach, little latency, and labels that the others lack.

Source: SmartSplit, IEEE TPDS 35(12), 2024, https://arxiv.org/abs/2410.11577 (see `methods/smartsplit.py`). Its outline
says that clients are selected jointly by memory budget, training capacity and data distribution. The formulas and
constants are not public: all of them are RECONSTRUCTED.

- U = S R V is the utility of a client. Memory is a gate: who can hold no part of the model has no latency.
- S = n sqrt(mean squared loss of the samples at the client's last task), n before the first: what is left to learn.
- R = min(1, (target / latency) ^ exponent): slow clients make the round longer. The latency is that of the largest
  part of the model that the client holds (`round_s`, the talk with the server among it): how the model will be cut is
  not known yet.
- V = 1 - JS(labels of those chosen so far and this client's, uniform): the cohort should hold all classes alike.
  JS is the Jensen-Shannon divergence to base 2, from 0 to 1. Where labels are not known V is 1.

Clients are taken one after the other, the best first; a share of the places is left to chance. In a large fleet V is
asked of those only that stand highest without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedhybrid.errors import ConfigError
from fedhybrid.protocols import CandidateView, PolicyState
from fedhybrid.records import FloatArray, IntArray, Outcome
from fedhybrid.selection.arms import empty_arms, lookup_arms, updated_arms
from fedhybrid.selection.bandit import preferred_round_s, speed_factor
from fedhybrid.selection.gates import admitted_rows
from fedhybrid.selection.options import least_problems, percentile_problems, ratio_problems
from fedhybrid.selection.sampling import best, pick, round_rng

__all__ = ["SmartSplitSelection", "divergence_from_uniform"]

_FINALISTS = 4  # for each place, but
_FEWEST_FINALISTS = 1000


@dataclass(frozen=True, kw_only=True)
class SmartSplitSelection:
    """Takes clients greedily by what they teach, how fast they are and which labels they add.

    Attributes:
        latency_exponent: Of target / latency; 0 ignores latency.
        target_percentile: The target is this percentile of the candidates' latencies; at 100 none is too long.
        exploration_ratio: Share of the places that is left to chance.
    """

    latency_exponent: float = 2.0
    target_percentile: float = 50.0
    exploration_ratio: float = 0.1

    def __post_init__(self) -> None:
        problems = [
            *least_problems(0, latency_exponent=self.latency_exponent),
            *percentile_problems(target_percentile=self.target_percentile),
            *ratio_problems(exploration_ratio=self.exploration_ratio),
        ]
        if problems:
            raise ConfigError(problems)

    def init(self) -> PolicyState:
        """No client tried yet."""
        return empty_arms()

    def select(
        self, candidates: CandidateView, count: int, state: PolicyState, *, round_index: int, seed: int
    ) -> tuple[IntArray, PolicyState]:
        """At most `count` candidates that can hold a part of the model."""
        rng = round_rng(seed, round_index)
        fit = admitted_rows(candidates, "planned")
        client, round_s, num_samples = candidates.client[fit], candidates.round_s[fit], candidates.num_samples[fit]
        count = min(count, len(fit))
        loss = np.nan_to_num(lookup_arms(client, state).squared_loss_mean, nan=1.0)  # S is n where none is known
        target_s = preferred_round_s(round_s, self.target_percentile)
        worth = num_samples * np.sqrt(loss) * speed_factor(round_s, target_s, self.latency_exponent)
        explored = int(np.floor(count * self.exploration_ratio + rng.random()))  # right on average
        finalists = best(np.arange(len(fit)), worth, max(_FINALISTS * count, _FEWEST_FINALISTS), rng)
        chosen = _chosen(worth[finalists], candidates.label_counts[fit[finalists]], max(count - explored, 0))
        rows = finalists[chosen]
        rest = np.setdiff1d(np.arange(len(fit)), rows)
        rows = np.sort(np.concatenate([rows, pick(rest, count - len(rows), rng)]))
        return client[rows], state

    def observe(self, outcomes: Sequence[Outcome], state: PolicyState) -> PolicyState:
        """Remembers losses."""
        return updated_arms(outcomes, state)


def _chosen(worth: FloatArray, label_counts: IntArray, count: int) -> IntArray:
    """Rows of the clients taken one after the other, each the best beside those before it; ties go to the first."""
    free = np.ones(len(worth), dtype=bool)
    held = np.zeros(label_counts.shape[1], dtype=np.int64)
    taken: list[int] = []
    for _ in range(min(count, len(worth))):
        utility = worth * (1.0 - divergence_from_uniform(held + label_counts))
        row = int(np.argmax(np.where(free, utility, -1.0)))
        free[row] = False
        held = held + label_counts[row]
        taken.append(row)
    return np.array(taken, dtype=np.int64)


def divergence_from_uniform(label_counts: IntArray) -> FloatArray:
    """Jensen-Shannon divergence (base 2, 0 to 1) of each row's labels from all classes alike; 0 for rows of nothing.

    Args:
        label_counts: Samples by client and class.

    >>> divergence_from_uniform(np.array([[5, 5], [10, 0], [0, 0]])).round(3).tolist()
    [0.0, 0.311, 0.0]
    """
    total = label_counts.sum(axis=1, keepdims=True)
    classes = label_counts.shape[1]
    if classes == 0:
        return np.zeros(len(label_counts))
    uniform = np.full(classes, 1.0 / classes)
    shares = np.where(total > 0, label_counts / np.maximum(total, 1), uniform)
    divergence: FloatArray = _entropy((shares + uniform) / 2) - (_entropy(shares) + np.log2(classes)) / 2
    return np.clip(divergence, 0.0, 1.0)


def _entropy(shares: FloatArray) -> FloatArray:
    """In bits, of each row."""
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy: FloatArray = -(shares * logs).sum(axis=1)
    return entropy
