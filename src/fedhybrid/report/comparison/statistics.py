"""Means with intervals, ratios and ranks of a few numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Estimate", "estimate", "geometric_mean", "mean_or_none", "ranks", "students_t"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The mean of some numbers, all of them, and half of the 95 % interval's width (None for one number)."""

    mean: float
    half: float | None
    values: tuple[float, ...]


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and 95 % interval by Student's t; None for no number.

    >>> found = estimate([0.70, 0.74, 0.72])
    >>> round(found.mean, 4), round(found.half, 4)
    (0.72, 0.0497)
    """
    if not values:
        return None
    half = None
    if len(values) > 1:
        half = students_t(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean=statistics.fmean(values), half=half, values=tuple(values))


def students_t(freedom: int, confidence: float = 0.95) -> float:
    """How many standard errors to either side hold so much of Student's distribution, for whole degrees of freedom.

    By bisection of the distribution's closed form.

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4.

    >>> [round(students_t(n), 3) for n in (1, 2, 4, 30)]
    [12.706, 4.303, 2.776, 2.042]
    """
    low, high = 0.0, 1.0
    while _within(high, freedom) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """How much of the distribution lies between -t and t."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total, at = 0.0, 1 + odd
    while at < freedom:  # one term for each of cos, cos^3, ... or of 1, cos^2, ...
        total += term
        term *= square * at / (at + 1)
        at += 2
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def geometric_mean(values: Sequence[float]) -> float | None:
    """Of ratios, where twice and half cancel out; None for no number.

    >>> geometric_mean([2.0, 0.5])
    1.0
    """
    return statistics.geometric_mean(values) if values else None


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """The mean of the numbers that are there; None where none is."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def ranks(values: Mapping[str, float]) -> dict[str, float]:
    """Each one's place, the smallest is 1; equal ones share the mean of their places.

    >>> ranks({"a": 3.0, "b": 1.0, "c": 3.0})
    {'a': 2.5, 'b': 1.0, 'c': 2.5}
    """
    found = {}
    for label, value in values.items():
        before = sum(other < value for other in values.values())
        equal = sum(other == value for other in values.values())
        found[label] = before + (equal + 1) / 2
    return found
