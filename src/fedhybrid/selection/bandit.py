"""What the bandits among the policies share: how much to explore, how scores are made, how a cohort is divided."""

from __future__ import annotations

import math

import numpy as np

from fedhybrid.records import FloatArray

__all__ = [
    "count_bonus",
    "exploited_places",
    "exploration_share_ratio",
    "last_round_bonus",
    "normalised",
    "preferred_round_s",
    "speed_factor",
]


def exploration_share_ratio(round_index: int, *, first_ratio: float, decay: float, floor_ratio: float) -> float:
    """Share of the cohort for untried clients in round `round_index`, which counts from 0.

    >>> exploration_share_ratio(0, first_ratio=0.9, decay=0.98, floor_ratio=0.2)
    0.9
    """
    return max(floor_ratio, first_ratio * decay**round_index)


def exploited_places(
    count: int, share_ratio: float, *, tried: int, untried: int, rng: np.random.Generator | None = None
) -> int:
    """How many of `count` places go to tried clients when `share_ratio` of them is for untried ones.

    A scarce kind leaves its places to the other.

    Args:
        count: Places; at most `tried + untried`.
        share_ratio: Of untried clients.
        tried: How many there are.
        untried: How many there are.
        rng: Rounds up or down at random, right on average, which matters where cohorts are of one; by default the
            untried clients' places are rounded up.

    >>> exploited_places(10, 0.9, tried=50, untried=50), exploited_places(10, 0.9, tried=50, untried=3)
    (1, 7)
    """
    # Rounded up, and in this form, so that 10 * 0.9 is 9 explored: 10 * (1 - 0.9) is a little below 1.
    explored = count * share_ratio
    exploited = count - (math.ceil(explored - 1e-9) if rng is None else math.floor(explored + rng.random()))
    return min(max(exploited, count - untried), tried)


def normalised(utility: FloatArray, among: np.ndarray, clip_percentile: float) -> FloatArray:
    """To [0, 1] between the lowest and the clip percentile of those `among`; all 1 where they do not differ."""
    if not among.any():
        return np.ones_like(utility)
    low = float(utility[among].min())
    high = float(np.percentile(utility[among], clip_percentile))
    if high <= low:
        return np.ones_like(utility)
    scaled: FloatArray = np.clip((utility - low) / (high - low), 0.0, 1.0)
    return scaled


def last_round_bonus(weight: float, last_round: FloatArray, round_index: int) -> FloatArray:
    """Oort's: sqrt(weight ln R / L) with R the round and L the client's last one, both counted from 1."""
    bonus: FloatArray = np.sqrt(weight * math.log(round_index + 1) / last_round)
    return bonus


def count_bonus(weight: float, times: FloatArray, round_index: int) -> FloatArray:
    """UCB1's: weight sqrt(2 ln R / n) with R the round, counted from 1, and n the client's participations, at least 1.

    Source: P. Auer, N. Cesa-Bianchi, P. Fischer, "Finite-time Analysis of the Multiarmed Bandit Problem", 2002.
    """
    bonus: FloatArray = weight * np.sqrt(2 * math.log(round_index + 1) / np.maximum(times, 1.0))
    return bonus


def preferred_round_s(round_s: FloatArray, percentile: float) -> float:
    """This percentile of the finite ones among `round_s`; infinite, that is no preference, at 100 or where none is."""
    finite = round_s[np.isfinite(round_s)]
    return float(np.percentile(finite, percentile)) if percentile < 100 and len(finite) else math.inf


def speed_factor(round_s: FloatArray, preferred_s: float, penalty: float) -> FloatArray:
    """Oort's global system utility: (preferred / t) ** penalty where t is longer, else 1; 0 where t is infinite."""
    if math.isinf(preferred_s):
        return np.where(np.isinf(round_s), 0.0, 1.0)
    # A picosecond stands for no time at all.
    ratio = np.minimum(1.0, max(preferred_s, 1e-12) / np.maximum(round_s, 1e-12))
    factor: FloatArray = ratio**penalty
    return factor
