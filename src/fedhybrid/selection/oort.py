"""Oort: clients whose data still teach most, as far as they are fast enough, as a bandit with a pacer.

Source: F. Lai, X. Zhu, H. V. Madhyastha, M. Chowdhury, "Oort: Efficient Federated Learning via Guided Participant
Selection", OSDI 2021, https://arxiv.org/abs/2010.06081.

Follows: Algorithm 1. A tried client's statistical utility is |B| sqrt(mean squared loss), clipped at the 95th
percentile; to it comes sqrt(0.1 ln R / L), R the round and L the client's last one; the sum is multiplied by
(T / t) ** 2 where its round time t is longer than the preferred T. Among those above 95 % of the cut-off utility the
cohort is drawn in proportion to utility. A share of it, 0.9 at first, times 0.98 each round, never below 0.2, goes to
untried clients, fast ones preferred. The pacer makes T longer when the utility gained in the last window of 20 rounds
is below that of the window before.

Differs:
- T is a percentile of the fit clients' round times, 30 at first and 5 more a step, as in the authors' program (the
  paper's T is in seconds, which no default fits); at 100 there is no penalty.
- The pacer looks once a window, as their program does; the algorithm as printed would look each round.
- Utilities are normalised to [0, 1] among the tried clients before the bonus is added, as in their program.
- t is the predicted time of the client's whole task, also for clients that were never tried; speed is 1 / t.
- A client whose tasks never came back with a loss counts as tried, with the lowest utility.
- `memory_gate`: Oort knows no memory. "unplanned", the default, leaves out devices that cannot hold the step as it is,
  as a system without plans must; "planned" lets in those that can run it under a plan; "none" is Oort to the letter,
  on devices that then fail.
- `blacklist_after`: clients picked more often are left out while enough others are there; 0, the default, is never.
  (The paper blacklists against outliers; its program only when asked to.)
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
from fedhybrid.selection.bandit import (
    exploited_places,
    exploration_share_ratio,
    last_round_bonus,
    normalised,
    preferred_round_s,
    speed_factor,
)
from fedhybrid.selection.gates import MEMORY_GATES, admitted_rows
from fedhybrid.selection.options import choice_problems, least_problems, percentile_problems, ratio_problems
from fedhybrid.selection.sampling import pick_weighted, round_rng

__all__ = ["Oort"]


@dataclass(frozen=True, kw_only=True)
class Oort:
    """Prefers clients by loss and speed; the module's text says how.

    Attributes:
        memory_gate: "unplanned", "planned" or "none".
        bonus: The 0.1 in the bonus.
        speed_penalty: The exponent on T / t; 0 ignores speed.
        preferred_percentile: Of the fit clients' round times: T in the first rounds.
        pacer_percentile_step: What the pacer adds to it.
        pacer_window_rounds: How many rounds of gained utility it compares with as many before them.
        cut_off_ratio: Of the cut-off utility, above which clients are drawn from.
        exploration_ratio: Share of the cohort for untried clients in the first round.
        exploration_decay: Factor on that share from round to round.
        exploration_floor_ratio: Its lowest value.
        clip_percentile: Utilities above this percentile of the tried clients count as it.
        blacklist_after: Participations after which a client is left out; 0 is never.
    """

    memory_gate: str = "unplanned"
    bonus: float = 0.1
    speed_penalty: float = 2.0
    preferred_percentile: float = 30.0
    pacer_percentile_step: float = 5.0
    pacer_window_rounds: int = 20
    cut_off_ratio: float = 0.95
    exploration_ratio: float = 0.9
    exploration_decay: float = 0.98
    exploration_floor_ratio: float = 0.2
    clip_percentile: float = 95.0
    blacklist_after: int = 0

    def __post_init__(self) -> None:
        problems = [
            *choice_problems("memory_gate", self.memory_gate, MEMORY_GATES),
            *least_problems(
                0,
                bonus=self.bonus,
                speed_penalty=self.speed_penalty,
                pacer_percentile_step=self.pacer_percentile_step,
                blacklist_after=self.blacklist_after,
            ),
            *least_problems(1, pacer_window_rounds=self.pacer_window_rounds),
            *ratio_problems(
                cut_off_ratio=self.cut_off_ratio,
                exploration_ratio=self.exploration_ratio,
                exploration_decay=self.exploration_decay,
                exploration_floor_ratio=self.exploration_floor_ratio,
            ),
            *percentile_problems(preferred_percentile=self.preferred_percentile, clip_percentile=self.clip_percentile),
        ]
        if problems:
            raise ConfigError(problems)

    def init(self) -> PolicyState:
        """No client tried yet; T at its first percentile."""
        return empty_arms() | {
            "preferred_percentile": self.preferred_percentile,
            "paced_window": 0,  # the window in which the pacer looked last
            "window_utility": [],  # the last windows with gains, as pairs of window and gain
        }

    def select(
        self, candidates: CandidateView, count: int, state: PolicyState, *, round_index: int, seed: int
    ) -> tuple[IntArray, PolicyState]:
        """At most `count` candidates that pass the memory gate."""
        rng = round_rng(seed, round_index)
        state = self.paced(state, round_index)
        fit = admitted_rows(candidates, self.memory_gate)
        arms = lookup_arms(candidates.client[fit], state)
        tried, untried, arms = fit[arms.tried], fit[~arms.tried], arms.of_tried()
        count = min(count, len(fit))
        preferred_s = preferred_round_s(candidates.round_s[fit], state["preferred_percentile"])
        share_ratio = exploration_share_ratio(
            round_index,
            first_ratio=self.exploration_ratio,
            decay=self.exploration_decay,
            floor_ratio=self.exploration_floor_ratio,
        )
        score = self.scores(arms, candidates.round_s[tried], preferred_s, round_index)
        allowed = np.flatnonzero(arms.times <= self.blacklist_after) if self.blacklist_after else np.arange(len(tried))
        if len(allowed) + len(untried) >= count:
            tried, score = tried[allowed], score[allowed]
        places = exploited_places(count, share_ratio, tried=len(tried), untried=len(untried), rng=rng)
        exploited = self._exploited(tried, score, places, rng)
        # A picosecond stands for no time at all; one over infinity is weight 0.
        explored = pick_weighted(untried, 1.0 / np.maximum(candidates.round_s[untried], 1e-12), count - places, rng)
        return np.sort(candidates.client[np.concatenate([exploited, explored])]), state

    def observe(self, outcomes: Sequence[Outcome], state: PolicyState) -> PolicyState:
        """Remembers losses, participations and what the windows gained."""
        gained: dict[int, float] = dict(state["window_utility"])
        for outcome in outcomes:
            if outcome.squared_loss_mean is not None and math.isfinite(outcome.squared_loss_mean):
                window = outcome.round_index // self.pacer_window_rounds
                utility = outcome.num_samples * math.sqrt(outcome.squared_loss_mean)
                gained[window] = gained.get(window, 0.0) + utility
        # The running window and the two that the pacer compares.
        return updated_arms(outcomes, state) | {"window_utility": [[w, gained[w]] for w in sorted(gained)[-3:]]}

    def paced(self, state: PolicyState, round_index: int) -> PolicyState:
        """The state as the pacer leaves it at the start of round `round_index`."""
        window = round_index // self.pacer_window_rounds
        if window < 2 or window == state["paced_window"]:
            return state
        gained: dict[int, float] = dict(state["window_utility"])
        percentile = state["preferred_percentile"]
        if gained.get(window - 2, 0.0) > gained.get(window - 1, 0.0):
            percentile = min(100.0, percentile + self.pacer_percentile_step)
        return state | {"preferred_percentile": percentile, "paced_window": window}

    def scores(self, arms: Arms, round_s: FloatArray, preferred_s: float, round_index: int) -> FloatArray:
        """The utility of tried clients with these round times."""
        stat = np.nan_to_num(arms.num_samples * np.sqrt(arms.squared_loss_mean), nan=0.0)
        score = normalised(stat, arms.tried, self.clip_percentile)
        score = score + last_round_bonus(self.bonus, arms.last_round, round_index)
        return score * speed_factor(round_s, preferred_s, self.speed_penalty)

    def _exploited(self, tried: IntArray, score: FloatArray, places: int, rng: np.random.Generator) -> IntArray:
        """Drawn in proportion to score among those above the cut-off."""
        if places == 0:
            return tried[:0]
        cut_off = self.cut_off_ratio * np.partition(score, len(score) - places)[len(score) - places]
        above = score >= cut_off
        return pick_weighted(tried[above], score[above], places, rng)
