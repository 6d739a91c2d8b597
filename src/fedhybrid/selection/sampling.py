"""Random picks that several policies share."""

from __future__ import annotations

import numpy as np

from fedhybrid.records import IntArray
from fedhybrid.seeds import derive_seed

__all__ = ["pick", "round_rng"]


def round_rng(seed: int, round_index: int) -> np.random.Generator:
    """The generator of one round's selection; it does not depend on earlier rounds."""
    return np.random.default_rng(derive_seed(seed, purpose="selection", round_index=round_index))


def pick(clients: IntArray, count: int, rng: np.random.Generator) -> IntArray:
    """At most `count` of `clients` without replacement, all alike, in ascending order."""
    return np.sort(rng.choice(clients, size=min(count, len(clients)), replace=False, shuffle=False))
