"""Which tensors to train: the most important ones whose gradients fit into a time.

Source: K. Huang, B. Yang, W. Gao, "ElasticTrainer: Speeding Up On-Device Training with Runtime Elastic Tensor
Selection", MobiSys 2023 (the selection problem and its solution by dynamic programming over the depth).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

__all__ = ["choose_tensors"]

_STATES = 4096  # kept as they are: up to 12 tensors the choice is exact whatever their seconds
_BINS = 1000  # beyond, the best in each so many parts of the time; the number is ElasticTrainer's
_SLACK = 1e-9  # of the time: rounding of sums

_State = tuple[float, float, int]  # seconds, value, chosen tensors as the bits of a number


def choose_tensors(
    values: Sequence[float], weight_s: Sequence[float], pass_s: Sequence[float], limit_s: float
) -> tuple[int, ...]:
    """The set of tensors of the largest sum of values whose backward pass takes at most `limit_s`.

    A set takes its tensors' `weight_s` and, to get the gradient there, the `pass_s` of every tensor behind the first of
    the set. Walks from the last tensor to the first; what may be chosen behind the first tensor is a knapsack whose
    states (seconds, value) are kept where none is both faster and better. Only if these become many, they are thinned
    out: the result then still keeps to the time, and misses at most what a time shorter by a thousandth for each tensor
    would miss.

    Args:
        values: Importance of each tensor, in the order of the forward pass; those not above 0 are left alone.
        weight_s: Seconds of each tensor's own gradient and update.
        pass_s: Seconds to pass the gradient on through each.
        limit_s: What is left for all that.

    Returns:
        Positions in `values`, ascending; empty where nothing fits.
    """
    assert len(values) == len(weight_s) == len(pass_s)
    limit_s *= 1 + _SLACK
    states: list[_State] = [(0.0, 0.0, 0)]
    best_value, best = 0.0, 0
    passed_s = 0.0
    for j in reversed(range(len(values))):
        if values[j] > 0 and passed_s + weight_s[j] <= limit_s:
            room_s = limit_s - passed_s - weight_s[j]
            _, value, chosen = states[bisect_right(states, room_s, key=lambda state: state[0]) - 1]
            if value + values[j] > best_value:
                best_value, best = value + values[j], chosen | 1 << j
            more = [(s + weight_s[j], v + values[j], c | 1 << j) for s, v, c in states]
            states = _undominated(states, more)
        passed_s += pass_s[j]
        if passed_s > limit_s:
            break
        states = [state for state in states if passed_s + state[0] <= limit_s]
        if len(states) > _STATES:
            states = _thinned(states, limit_s - passed_s)
    return tuple(j for j in range(len(values)) if best >> j & 1)


def _undominated(one: list[_State], other: list[_State]) -> list[_State]:
    """Those of both that have more value than every faster one, by rising seconds."""
    kept: list[_State] = []
    for state in sorted([*one, *other], key=lambda state: (state[0], -state[1])):
        if not kept or state[1] > kept[-1][1]:
            kept.append(state)
    return kept


def _thinned(states: list[_State], limit_s: float) -> list[_State]:
    """The state of nothing, and the best of each bin of seconds."""
    best = {int(state[0] / limit_s * _BINS): state for state in states}  # values rise, so the last of a bin stays
    return [states[0], *(state for state in best.values() if state is not states[0])]
