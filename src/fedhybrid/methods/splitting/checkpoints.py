"""Which segments to make again in the backward pass: a rule for the manager on the device, for comparison.

RECONSTRUCTED, and ours where it is more than "best ratio of saved bytes to recomputed FLOPs first": that alone may cost
any multiple of the best choice. Runs do not use it: there the planner decides by its own rules, tensor by tensor on the
captured step. This file says what the rule is worth on segments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

__all__ = ["Segment", "best_segments", "cheap_segments"]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Layers whose stored activations can be dropped together: bytes that this saves, FLOPs to make them again."""

    saved_bytes: int
    flops: float


def cheap_segments(segments: Sequence[Segment], needed_bytes: int) -> tuple[int, ...] | None:
    """Segments that together save at least so many bytes, for at most 1.5 times the fewest FLOPs; None if all do not.

    Each segment in turn is taken for the dearest one of the best choice, and the others that are no dearer are chosen
    by ratio. With c the FLOPs of the true dearest one and b those of the best choice this costs at most c + 2 (b - c),
    and at most c + b: together never more than 1.5 b.

    Source: J. Csirik, J. Frenk, M. Labbe, S. Zhang, "Heuristics for the 0-1 min-knapsack problem", Acta Cybernetica
    10, 1991, for the greedy choice of at most twice the best.

    >>> segments = [Segment(saved_bytes=9, flops=1.0), Segment(saved_bytes=10, flops=1.2)]
    >>> cheap_segments(segments, 10), cheap_segments(segments, 20)
    ((1,), None)
    """
    if needed_bytes <= 0:
        return ()
    found = []
    for dearest, segment in enumerate(segments):
        others = [n for n, other in enumerate(segments) if n != dearest and other.flops <= segment.flops]
        rest = _greedy(segments, others, needed_bytes - segment.saved_bytes)
        if rest is not None:
            found.append((dearest, *rest))
    best = min(found, key=lambda chosen: (_flops(segments, chosen), sorted(chosen)), default=None)
    return None if best is None else tuple(sorted(best))


def _greedy(segments: Sequence[Segment], among: Iterable[int], needed_bytes: int) -> tuple[int, ...] | None:
    """By ratio, best first; whichever would be enough closes one possible choice and is passed over."""
    if needed_bytes <= 0:
        return ()
    taken: list[int] = []
    saved_bytes = 0
    closed: list[tuple[int, ...]] = []
    for number in sorted(among, key=lambda n: (-_ratio(segments[n]), n)):
        if saved_bytes + segments[number].saved_bytes >= needed_bytes:
            closed.append((*taken, number))
        else:
            taken.append(number)
            saved_bytes += segments[number].saved_bytes
    return min(closed, key=lambda chosen: _flops(segments, chosen), default=None)


def _ratio(segment: Segment) -> float:
    return segment.saved_bytes / segment.flops if segment.flops else math.inf


def _flops(segments: Sequence[Segment], chosen: Iterable[int]) -> float:
    return sum(segments[number].flops for number in chosen)


def best_segments(segments: Sequence[Segment], needed_bytes: int) -> tuple[int, ...] | None:
    """The same with the fewest FLOPs, by looking at every choice; None if all together do not save enough."""
    every = (chosen for size in range(len(segments) + 1) for chosen in combinations(range(len(segments)), size))
    enough = (chosen for chosen in every if sum(segments[n].saved_bytes for n in chosen) >= needed_bytes)
    return min(enough, key=lambda chosen: _flops(segments, chosen), default=None)
