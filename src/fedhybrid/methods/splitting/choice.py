"""Which cut: the central manager's first choice, and the edge manager's refinement of it.

RECONSTRUCTED, both of them, as are their constants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

__all__ = ["earlier_cut", "fastest_cut", "refined_cut"]


def fastest_cut(latencies_s: Mapping[int, float]) -> int | None:
    """First choice: the cut of the least latency; of equal ones the deepest, which shows the server the least.

    Args:
        latencies_s: By cut; infinity where it does not fit.

    >>> fastest_cut({1: 5.0, 2: 3.0, 3: 3.0, 4: math.inf}), fastest_cut({1: math.inf})
    (3, None)
    """
    feasible = {cut: seconds for cut, seconds in latencies_s.items() if math.isfinite(seconds)}
    return min(feasible, key=lambda cut: (feasible[cut], -cut), default=None)


def refined_cut(latencies_s: Mapping[int, float], importance: Sequence[float], *, weight: float) -> int | None:
    """Refinement: of a client's cut and its neighbours the largest I_{<=c} / I - lambda latency / max latency.

    Args:
        latencies_s: Of these cuts; infinity where one does not fit.
        importance: I, of each part of the model; not all zero.
        weight: lambda.

    >>> refined_cut({1: 1.0, 2: 1.1, 3: 4.0}, [1.0, 3.0, 1.0], weight=0.5)
    2
    """
    feasible = {cut: seconds for cut, seconds in latencies_s.items() if math.isfinite(seconds)}
    total, longest_s = sum(importance) or 1.0, max(feasible.values(), default=0.0) or 1.0
    scores = {cut: sum(importance[:cut]) / total - weight * seconds / longest_s for cut, seconds in feasible.items()}
    return max(scores, key=lambda cut: (scores[cut], cut), default=None)


def earlier_cut(cut: int, latencies_s: Mapping[int, float]) -> int | None:
    """The deepest cut that fits of those not beyond `cut`, or else the nearest beyond it; None where none fits.

    >>> earlier_cut(3, {1: 1.0, 2: 5.0, 3: math.inf, 4: 9.0})
    2
    """
    feasible = [other for other, seconds in latencies_s.items() if math.isfinite(seconds)]
    return max((other for other in feasible if other <= cut), default=min(feasible, default=None))
