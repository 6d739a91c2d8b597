"""Randomness is derived from (run seed, round, client, purpose), never drawn from a global."""

from __future__ import annotations

import hashlib

__all__ = ["derive_seed"]


def derive_seed(run_seed: int, *, purpose: str, round_index: int = -1, client: int = -1) -> int:
    """A seed in [0, 2**63) that depends on all four and on nothing else.

    Any round of any client can be replayed alone, and the order of simulation cannot change results.

    >>> derive_seed(1, purpose="batches", round_index=3, client=7) == derive_seed(1, purpose="batches", round_index=3)
    False
    """
    text = f"{run_seed}/{round_index}/{client}/{purpose}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
