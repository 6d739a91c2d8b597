"""The search for the strength to begin with: the strongest one that costs little accuracy in short trials.

Source: TEASQ-Fed starts strong and steps weaker until the loss of accuracy is small; what a trial is and how the loss
is measured are RECONSTRUCTED.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedhybrid.methods.teasq.ladder import NO_COMPRESSION, Strength

__all__ = ["Trial", "search_strength"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A short run at one strength, and how much accuracy (0 to 1) it lost against the one without compression."""

    strength: Strength
    accuracy: float
    loss: float


def search_strength(
    rungs: Sequence[Strength], accuracy_of: Callable[[Strength], float], *, most_loss: float
) -> list[Trial]:
    """Trials from strong to weak until one is good enough; the last of them is the strength to take.

    Where none is good enough, the last trial is that of the weakest rung.

    Args:
        rungs: From strong to weak, not empty.
        accuracy_of: Runs a trial: the accuracy (0 to 1) that a short run at this strength ends with. It is asked first
            for the one without compression, which the others are held against, and never twice for one strength.
        most_loss: Accuracy that may be lost, 0 to 1.

    >>> trials = {(0.1, 4): 0.70, (0.25, 8): 0.88, (0.5, 8): 0.90, (1.0, 32): 0.90}
    >>> rungs = [Strength(ratio=ratio, bits=bits) for ratio, bits in trials]
    >>> found = search_strength(rungs, lambda s: trials[s.ratio, s.bits], most_loss=0.03)
    >>> str(found[-1].strength), len(found)
    ('0.25/8', 2)
    """
    whole = accuracy_of(NO_COMPRESSION)
    trials: list[Trial] = []
    for strength in rungs:
        accuracy = whole if strength == NO_COMPRESSION else accuracy_of(strength)
        trials.append(Trial(strength=strength, accuracy=accuracy, loss=whole - accuracy))
        if trials[-1].loss <= most_loss:
            break
    return trials
