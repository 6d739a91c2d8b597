"""When masks change, and how sparse they are in between: elastic mutation (EM) and its soft memory bound (EM&S).

Source: G. Yuan et al., MEST, NeurIPS 2021, https://arxiv.org/abs/2110.14032, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

__all__ = ["VARIANTS", "Phase", "Schedule", "phases"]

VARIANTS = ("em", "em-s", "static")
_DIGITS = 10  # sparsities are decimals: 0.9 - 0.025 is 0.875


@final
@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of the mutation schedule.

    Attributes:
        lower: The sparsity that a mutation prunes to.
        upper: The sparsity that it grows to, and at which training goes on.
    """

    lower: float
    upper: float


def phases(variant: str, sparsity: float, mutation_ratio: float) -> tuple[Phase, Phase, Phase]:
    """The three phases; the last one changes nothing.

    Args:
        variant: "em" prunes further than asked for and grows back, so that never more is held than at the end; "em-s"
            grows further and prunes back at the next mutation; "static" never changes.
        sparsity: At the end.
        mutation_ratio: Part of all units that a mutation of the first phase changes; half as many in the second.

    >>> [(p.lower, p.upper) for p in phases("em", 0.9, 0.02)]
    [(0.92, 0.9), (0.91, 0.9), (0.9, 0.9)]
    >>> [(p.lower, p.upper) for p in phases("em-s", 0.9, 0.05)]
    [(0.9, 0.85), (0.9, 0.875), (0.9, 0.9)]
    """
    down, up = {"em": (1, 0), "em-s": (0, 1), "static": (0, 0)}[variant]
    first, second, last = (
        Phase(
            lower=round(sparsity + down * share * mutation_ratio, _DIGITS),
            upper=round(sparsity - up * share * mutation_ratio, _DIGITS),
        )
        for share in (1.0, 0.5, 0.0)
    )
    return first, second, last


@final
@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Which phase holds when. Time is counted in epochs, or in a federation's rounds.

    Attributes:
        phases: One after the other.
        starts: When the second and the third begin.
        every: Masks change at multiples of this, also at 0.
    """

    phases: tuple[Phase, Phase, Phase]
    starts: tuple[int, int]
    every: int

    def phase_at(self, time: int) -> Phase:
        """The phase of the last mutation up to then."""
        last = time // self.every * self.every
        return self.phases[sum(last >= start for start in self.starts)]

    def is_due(self, time: int) -> bool:
        """Whether a mutation then changes anything."""
        if time % self.every:
            return False
        phase = self.phase_at(time)
        return phase.lower != phase.upper or (time > 0 and self.phase_at(time - 1) != phase)
