"""Planned utility: the cohort that teaches most per second under its own plans, with a floor for every tier.

Source: ours (no paper). It keeps Oort's statistical utility (F. Lai et al., OSDI 2021,
https://arxiv.org/abs/2010.06081) and UCB1's bonus, and changes what FedHybrid (K. Tam et al., SenSys 2024,
https://arxiv.org/abs/2510.11400) makes of memory and of time.

Why:
- FedHybrid multiplies the utility by budget / unplanned peak and by the device's bare speed. But a plan pays for a
  small budget in seconds (recomputation, codecs), often few. Here a client's time is that of its whole task under its
  own plan (`round_s`), and memory has no term: it counts once, at its price. Without a plan the time is infinite.
- A round lasts as long as its slowest client, so time is a property of the cohort and not of a client: one slow client
  makes a round as long as ten do. So first the round's length T is chosen, the one with the largest expected utility of
  a cohort of clients with t <= T, divided by T; then clients are drawn from those in proportion to their utility. Most
  rounds are short; a long one comes when what slow clients would teach is worth it, and then many of them are in it.
- Time counts most at first, when any data move the model, and half as much after each `speed_half_life_rounds`: later
  what only slow devices hold is what is missing, and rounds of fast devices alone make the model forget it.
- Drawn, not the best: the clients with the highest losses are often those with the oddest data, and a cohort of them
  alone pulls the model away from everybody else.
- Speed and data are often linked: slow devices may hold classes that nobody else has, and nobody knows before they were
  heard. So each tier is owed `floor_ratio` of its share of places (`selection/floor.py`), paid several at a time. It is
  owed less while time counts more, in the first round nothing (unless time counts the same in all): what any data would
  teach is learnt from the fast ones. With the defaults a tier that nobody would choose is first heard after 16 rounds.
- A place of the floor goes to the tier's clients that took part least, so that it moves through all of them.
- A task that fails brings nothing: the utility is multiplied by (completed + 1) / (times + 1), which is 1 before a
  client has failed. A client that was never tried is taken to teach as much as the best of those that were; one that
  never came back with a loss stands at the median.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedhybrid.errors import ConfigError
from fedhybrid.protocols import CandidateView, PolicyState
from fedhybrid.records import FloatArray, IntArray, Outcome
from fedhybrid.selection.arms import Arms, empty_arms, lookup_arms, updated_arms
from fedhybrid.selection.bandit import count_bonus
from fedhybrid.selection.floor import ParticipationFloor, empty_floor
from fedhybrid.selection.gates import admitted_rows
from fedhybrid.selection.options import least_problems, percentile_problems, ratio_problems
from fedhybrid.selection.sampling import best, pick_weighted, round_rng

__all__ = ["PlannedUtility"]

_LENGTHS = 64  # of rounds that are looked at: more kinds of devices than fleets have
_SAMPLED = 4096  # of clients at least twice as many, some stand for all: their times are the lengths
_SHORTEST_S = 1e-12  # stands for no time at all


@dataclass(frozen=True, kw_only=True)
class PlannedUtility:
    """Prefers cohorts by loss per planned time, and in time hears every tier; the module's text says why.

    What is said of rounds here is of selections where a schedule has no rounds.

    Attributes:
        bonus: Weight of UCB1's bonus.
        speed_penalty: The exponent on a round's length in the first round.
        speed_penalty_least: The exponent is never less; where both are 0, time does not count.
        speed_half_life_rounds: After so many rounds it is half of what it was.
        size_power: The exponent on a client's number of samples; 1 is Oort's utility. FedAvg weighs updates by samples
            already.
        floor_ratio: Share of places that a tier is owed, of its share of the fit clients, when the exponent is at its
            least, and less before; 0 is no floor, 1 is participation in proportion.
        floor_burst_ratio: A tier is paid when it is owed this share of a cohort; 0 is as soon as possible.
        floor_window_rounds: A tier that is owed places waits no longer for some, once the floor has grown; what is
            older is forgotten.
        clip_percentile: Losses and utilities above this percentile of the tried clients' count as it.
    """

    bonus: float = 0.1
    speed_penalty: float = 1.0
    speed_penalty_least: float = 0.2
    speed_half_life_rounds: float = 24.0
    size_power: float = 1.0
    floor_ratio: float = 0.6
    floor_burst_ratio: float = 0.5
    floor_window_rounds: int = 20
    clip_percentile: float = 95.0

    def __post_init__(self) -> None:
        problems = [
            *least_problems(
                0,
                bonus=self.bonus,
                speed_penalty=self.speed_penalty,
                speed_penalty_least=self.speed_penalty_least,
                size_power=self.size_power,
            ),
            *least_problems(
                1, floor_window_rounds=self.floor_window_rounds, speed_half_life_rounds=self.speed_half_life_rounds
            ),
            *ratio_problems(floor_ratio=self.floor_ratio, floor_burst_ratio=self.floor_burst_ratio),
            *percentile_problems(clip_percentile=self.clip_percentile),
        ]
        if self.speed_penalty_least > self.speed_penalty:
            problems.append(
                f"policy option speed_penalty_least must be at most speed_penalty, which is {self.speed_penalty}, got "
                f"{self.speed_penalty_least}"
            )
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
        count = min(count, len(fit))
        if count == 0:
            return client[:0], state
        arms = lookup_arms(client, state)
        utility = self.utilities(arms, candidates.num_samples[fit], round_index)
        penalty = max(self.speed_penalty_least, self.speed_penalty * 0.5 ** (round_index / self.speed_half_life_rounds))
        floor = self._floor(penalty)
        places, state = floor.places(state, tier, round_s, count)
        free, times = np.ones(len(fit), dtype=bool), arms.times
        for owed in np.flatnonzero(places):
            free[_least_heard(np.flatnonzero(tier == owed), times, places[owed], rng)] = False
        heard, left = np.flatnonzero(~free), count - int((~free).sum())
        longest_s = _length_s(utility, round_s, free, left, penalty) if left else 0.0
        near = np.flatnonzero(free & (round_s <= longest_s))
        rows = np.sort(np.concatenate([heard, pick_weighted(near, utility[near], left, rng)]))
        return client[rows], floor.chosen(state, client[rows], tier[rows])

    def observe(self, outcomes: Sequence[Outcome], state: PolicyState) -> PolicyState:
        """Remembers losses, participations and failures."""
        return ParticipationFloor.observed(updated_arms(outcomes, state), outcomes)

    def utilities(self, arms: Arms, num_samples: IntArray, round_index: int) -> FloatArray:
        """What each client is expected to teach: in units of the best tried ones, plus bonus, times its success."""
        loss = np.sqrt(arms.squared_loss_mean)
        known = loss[np.isfinite(loss)]
        median, high = np.percentile(known, [50.0, self.clip_percentile]) if len(known) else (1.0, 1.0)
        loss = np.where(np.isnan(loss), np.where(arms.tried, median, high), loss)
        stat = loss * np.maximum(num_samples, 1) ** self.size_power
        most = float(np.percentile(stat[arms.tried] if arms.tried.any() else stat, self.clip_percentile))
        stat = np.clip(stat / most, 0.0, 1.0) if most > 0 else np.ones_like(stat)
        success = (arms.completed + 1) / (arms.times + 1)
        utility: FloatArray = (stat + count_bonus(self.bonus, arms.times, round_index)) * success
        return utility

    def _floor(self, penalty: float) -> ParticipationFloor:
        """The floor while time counts so much."""
        span = self.speed_penalty - self.speed_penalty_least
        grown_ratio = (self.speed_penalty - penalty) / span if span > 0 else 1.0
        return ParticipationFloor(
            floor_ratio=self.floor_ratio * grown_ratio,
            burst_ratio=self.floor_burst_ratio,
            window_rounds=self.floor_window_rounds,
        )


def _length_s(utility: FloatArray, round_s: FloatArray, free: np.ndarray, left: int, penalty: float) -> float:
    """How long the round may last: the clients of `free` within it have places for `left`."""
    lengths_s = _lengths_s(round_s)
    heard = ~free
    found = utility if not heard.any() else np.where(free, utility, 0.0)
    shortest = np.searchsorted(lengths_s, round_s)  # the first length that is long enough for each client
    number = np.bincount(shortest, free, len(lengths_s)).cumsum()
    total = np.bincount(shortest, found, len(lengths_s)).cumsum()
    squares = np.bincount(shortest, found * found, len(lengths_s)).cumsum()
    # A client that is drawn in proportion to its utility has this one on average.
    mean = np.divide(squares, total, out=np.zeros_like(total), where=total > 0)
    given = float(utility[heard].sum())
    rate = (given + left * mean) / np.maximum(lengths_s, _SHORTEST_S) ** penalty
    possible = (number >= left) & (lengths_s >= round_s[heard].max(initial=0.0))
    return float(lengths_s[np.argmax(np.where(possible, rate, -1.0))])


def _lengths_s(round_s: FloatArray) -> FloatArray:
    """Lengths of rounds that are worth a look, ascending: all times of clients, or some quantiles; and the longest."""
    sampled = round_s[:: max(1, len(round_s) // _SAMPLED)]
    lengths_s = np.unique(sampled)
    if len(lengths_s) > _LENGTHS:
        lengths_s = np.unique(np.quantile(sampled, np.arange(1, _LENGTHS) / _LENGTHS))
    return np.union1d(lengths_s, [round_s.max()])


def _least_heard(rows: IntArray, times: FloatArray, count: int, rng: np.random.Generator) -> IntArray:
    """`count` of `rows` that took part least, ties at random; `times` is indexed by row."""
    # The fraction breaks ties before they are sorted: at first all clients of a large fleet are tied.
    return best(rows, -(times[rows] + rng.random(len(rows))), count, rng)
