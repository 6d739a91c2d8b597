"""Random picks that several policies share."""

from __future__ import annotations

import numpy as np

from fedhybrid.records import FloatArray, IntArray
from fedhybrid.seeds import derive_seed

__all__ = ["best", "pick", "pick_weighted", "round_rng"]

_SMALLEST_WEIGHT_RATIO = 1e-250  # of the largest: an exponential variate divided by it is still a finite number


def round_rng(seed: int, round_index: int) -> np.random.Generator:
    """The generator of one round's selection; it does not depend on earlier rounds."""
    return np.random.default_rng(derive_seed(seed, purpose="selection", round_index=round_index))


def pick(clients: IntArray, count: int, rng: np.random.Generator) -> IntArray:
    """At most `count` of `clients` without replacement, all alike, in ascending order."""
    return np.sort(rng.choice(clients, size=min(count, len(clients)), replace=False, shuffle=False))


def pick_weighted(clients: IntArray, weights: FloatArray, count: int, rng: np.random.Generator) -> IntArray:
    """At most `count` of `clients`, one after the other, each as likely as its weight among those that are left.

    In ascending order, in one pass: the `count` smallest of (exponential variate / weight) have exactly that law
    (P. Efraimidis, P. Spirakis, "Weighted random sampling with a reservoir", 2006). Clients of weight 0 come last, all
    alike.

    Args:
        clients: Client numbers, or rows.
        weights: One for each, finite, at least 0.
        count: How many.
        rng: Draws one number for each client.
    """
    count = min(count, len(clients))
    if count == 0:
        return clients[:0]
    largest = float(weights.max()) or 1.0
    key = rng.standard_exponential(len(clients)) / np.maximum(weights / largest, _SMALLEST_WEIGHT_RATIO)
    return np.sort(clients[np.argpartition(key, count - 1)[:count]])


def best(clients: IntArray, scores: FloatArray, count: int, rng: np.random.Generator) -> IntArray:
    """At most `count` of `clients` with the highest scores, best first, ties at random.

    Args:
        clients: Client numbers, or rows.
        scores: One for each; no NaN.
        count: How many.
        rng: Draws one number for each client.
    """
    tie = rng.random(len(clients))
    count = min(count, len(clients))
    if count == 0:
        return clients[:0]
    worst_taken = np.partition(scores, len(scores) - count)[len(scores) - count]
    near = np.flatnonzero(scores >= worst_taken)  # only these need sorting
    return clients[near[np.lexsort((tie[near], -scores[near]))[:count]]]
