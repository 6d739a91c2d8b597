"""Checks of options that several policies have; each gives lines for the user, none where all is well."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["choice_problems", "least_problems", "percentile_problems", "ratio_problems"]


def choice_problems(name: str, value: str, choices: Sequence[str]) -> list[str]:
    """Where `value` is none of `choices`."""
    return [] if value in choices else [f"policy option {name} must be one of {', '.join(choices)}, got {value!r}"]


def ratio_problems(**options: float) -> list[str]:
    """Of options that are shares."""
    return [
        f"policy option {name} must be in [0, 1], got {value}" for name, value in options.items() if not 0 <= value <= 1
    ]


def percentile_problems(**options: float) -> list[str]:
    """Of options that are percentiles."""
    return [
        f"policy option {name} must be in (0, 100], got {value}"
        for name, value in options.items()
        if not 0 < value <= 100
    ]


def least_problems(least: float, **options: float) -> list[str]:
    """Of options that have a lowest value and must be finite."""
    return [
        f"policy option {name} must be at least {least}, got {value}"
        for name, value in options.items()
        if not (math.isfinite(value) and value >= least)
    ]
