"""Random numbers that are looked up, not drawn: a function of a key and of whole numbers, for whole arrays at once.

What a million clients have to themselves, such as when they go on line, needs no memory and no history this way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["hashed_below", "hashed_ratio", "mixed_words"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def hashed_ratio(key: int, *numbers: IntArray | int) -> FloatArray:
    """Uniform in [0, 1), one for each element of `numbers`, which broadcast; equal numbers, equal results.

    Each number is mixed into what came of those before it by the finalizer of SplitMix64.

    Source: G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, Figure 16
    (mix64variant13). That a chain of them is good enough for a simulation is ours; the tests look at it.

    Args:
        key: A derived seed (`seeds.derive_seed`); each purpose has its own.
        numbers: Such as clients' numbers, and the number of a slot of time.
    """
    mixed: NDArray[np.uint64] = np.full(1, key & (2**64 - 1), dtype=np.uint64)
    for number in numbers:
        mixed = mixed_words(
            mixed ^ (np.atleast_1d(np.asarray(number, dtype=np.int64)).astype(np.uint64) * _STEP + _STEP)
        )
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def hashed_below(key: int, below: IntArray | int, *numbers: IntArray | int) -> IntArray:
    """Uniform over 0, 1, ..., `below` - 1; see `hashed_ratio`. `below` is at most 2**53."""
    return (hashed_ratio(key, *numbers) * below).astype(np.int64)


def mixed_words(mixed: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64: one to one, so that different words stay different."""
    mixed = (mixed ^ (mixed >> _SHIFTS[0])) * _FIRST
    mixed = (mixed ^ (mixed >> _SHIFTS[1])) * _SECOND
    return mixed ^ (mixed >> _SHIFTS[2])
