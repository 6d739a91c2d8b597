"""Planned utility: what a client's data teach, per time that it takes under its own plan, with a floor for every tier.

Source: ours (no paper). It keeps Oort's statistical utility and speed term (F. Lai et al., OSDI 2021,
https://arxiv.org/abs/2010.06081) and UCB1's bonus, and changes what FedHybrid (K. Tam et al., SenSys 2024,
https://arxiv.org/abs/2510.11400) makes of memory.

Why:
- FedHybrid multiplies the utility by budget / unplanned peak and by the device's bare speed. But a plan pays for a
  small budget in seconds (recomputation, codecs), often few. Here a client's time is that of its whole task under its
  own plan (`round_s`), and memory has no term: it counts once, at its price. Without a plan the time is infinite.
- A round lasts as long as its slowest client, so nothing is gained by being faster than most: clients up to the median
  time do not differ, beyond it the utility falls as median / t. Where all times are equal the term is 1 for all.
- Speed and data are often linked: slow devices may hold classes that nobody else has, and the bonus, multiplied by the
  same speed, does not bring them in. So each tier is owed `floor_ratio` of its share of places (`selection/floor.py`),
  paid several at a time rather than one a round: one slow client makes a round as long as five do.
- A place of the floor goes to the tier's clients that took part least, so that it moves through all of them.
- A task that fails brings nothing: the score is multiplied by (completed + 1) / (times + 1), which is 1 before a
  client has failed. A client without a known loss stands at the median of the others'.
- Early on nearly all are untried: they are drawn in proportion to data size times speed, which is the same utility with
  one loss for all.
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
    normalised,
    preferred_round_s,
    speed_factor,
)
from fedhybrid.selection.floor import ParticipationFloor, empty_floor
from fedhybrid.selection.gates import admitted_rows
from fedhybrid.selection.options import least_problems, percentile_problems, ratio_problems
from fedhybrid.selection.sampling import best, pick_weighted, round_rng

__all__ = ["PlannedUtility"]


@dataclass(frozen=True, kw_only=True)
class PlannedUtility:
    """Prefers clients by loss and planned time, and hears every tier; the module's text says why.

    Attributes:
        bonus: Weight of UCB1's bonus.
        speed_penalty: The exponent on median / t; 0 ignores speed.
        preferred_percentile: 50 is the median; at 100 no time is too long.
        floor_ratio: Share of places that a tier is owed, of its share of the fit clients; 0 is no floor, 1 is
            participation in proportion.
        floor_burst_ratio: What is owed is paid when it makes up this share of a cohort; 0 is as soon as possible.
        floor_window_rounds: No tier waits longer; what is older is forgotten.
        exploration_ratio: Share of the cohort for untried clients in the first round.
        exploration_decay: Factor on that share from round to round.
        exploration_floor_ratio: Its lowest value.
        clip_percentile: Utilities above this percentile of the tried clients count as it.
    """

    bonus: float = 0.1
    speed_penalty: float = 1.0
    preferred_percentile: float = 50.0
    floor_ratio: float = 0.5
    floor_burst_ratio: float = 0.5
    floor_window_rounds: int = 20
    exploration_ratio: float = 0.9
    exploration_decay: float = 0.98
    exploration_floor_ratio: float = 0.2
    clip_percentile: float = 95.0

    def __post_init__(self) -> None:
        problems = [
            *least_problems(0, bonus=self.bonus, speed_penalty=self.speed_penalty),
            *least_problems(1, floor_window_rounds=self.floor_window_rounds),
            *ratio_problems(
                floor_ratio=self.floor_ratio,
                floor_burst_ratio=self.floor_burst_ratio,
                exploration_ratio=self.exploration_ratio,
                exploration_decay=self.exploration_decay,
                exploration_floor_ratio=self.exploration_floor_ratio,
            ),
            *percentile_problems(preferred_percentile=self.preferred_percentile, clip_percentile=self.clip_percentile),
        ]
        if problems:
            raise ConfigError(problems)

    def init(self) -> PolicyState:
        """No client tried yet, no tier owed anything."""
        return empty_arms() | empty_floor()

    def select(
        self, candidates: CandidateView, count: int, state: PolicyState, *, round_index: int, seed: int
    ) -> tuple[IntArray, PolicyState]:
        """At most `count` candidates that can do their task."""
        rng = round_rng(seed, round_index)
        fit = admitted_rows(candidates, "planned")
        client, tier, round_s = candidates.client[fit], candidates.tier[fit], candidates.round_s[fit]
        num_samples = candidates.num_samples[fit]
        count = min(count, len(fit))
        arms = lookup_arms(client, state)
        places, state = self._floor.places(state, tier, count)
        free = np.ones(len(fit), dtype=bool)
        for owed in np.flatnonzero(places):
            free[_least_heard(np.flatnonzero(tier == owed), arms.times, places[owed], rng)] = False
        heard = np.flatnonzero(~free)
        speed = speed_factor(round_s, preferred_round_s(round_s, self.preferred_percentile), self.speed_penalty)
        tried, untried = np.flatnonzero(free & arms.tried), np.flatnonzero(free & ~arms.tried)
        score = (self.scores(arms.of_tried(), round_index) * speed[arms.tried])[free[arms.tried]]
        left = count - len(heard)
        exploited = exploited_places(
            left, self.exploration_share_ratio(round_index), tried=len(tried), untried=len(untried), rng=rng
        )
        chosen = best(tried, score, exploited, rng)
        explored = pick_weighted(untried, (num_samples * speed)[untried], left - exploited, rng)
        rows = np.sort(np.concatenate([heard, chosen, explored]))
        return client[rows], self._floor.chosen(state, client[rows], tier[rows])

    def observe(self, outcomes: Sequence[Outcome], state: PolicyState) -> PolicyState:
        """Remembers losses, participations and failures."""
        return self._floor.observed(updated_arms(outcomes, state), outcomes)

    def exploration_share_ratio(self, round_index: int) -> float:
        """Share of the places beyond the floor for untried clients in round `round_index` (the first is 0)."""
        return exploration_share_ratio(
            round_index,
            first_ratio=self.exploration_ratio,
            decay=self.exploration_decay,
            floor_ratio=self.exploration_floor_ratio,
        )

    def scores(self, arms: Arms, round_index: int) -> FloatArray:
        """Of tried clients, before their speed: normalised utility plus bonus, times their success."""
        stat = arms.num_samples * np.sqrt(arms.squared_loss_mean)
        known = stat[np.isfinite(stat)]
        stat = np.nan_to_num(stat, nan=float(np.median(known)) if len(known) else 0.0)
        success = (arms.completed + 1) / (arms.times + 1)
        score = normalised(stat, arms.tried, self.clip_percentile) + count_bonus(self.bonus, arms.times, round_index)
        return score * success

    @property
    def _floor(self) -> ParticipationFloor:
        return ParticipationFloor(
            floor_ratio=self.floor_ratio, burst_ratio=self.floor_burst_ratio, window_rounds=self.floor_window_rounds
        )


def _least_heard(rows: IntArray, times: FloatArray, count: int, rng: np.random.Generator) -> IntArray:
    """`count` of `rows` that took part least, ties at random; `times` is indexed by row."""
    # The fraction breaks ties before they are sorted: at first all clients of a large fleet are tied.
    return best(rows, -(times[rows] + rng.random(len(rows))), count, rng)
