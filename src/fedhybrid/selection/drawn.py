"""A random order of all clients that no list holds: by a word of each client's number, distinct for each."""

from __future__ import annotations

import numpy as np

from fedhybrid.hashing import mixed_words
from fedhybrid.records import IntArray

__all__ = ["first_drawn"]


def first_drawn(clients: IntArray, count: int, key: int) -> IntArray:
    """The `count` clients with the smallest words, in the order of these.

    Args:
        clients: Distinct numbers, not negative.
        count: At most so many.
        key: Decides the order.
    """
    words = mixed_words(clients.astype(np.uint64) ^ np.uint64(key))
    if count < len(clients):
        nearest = np.argpartition(words, count)[:count]
        clients, words = clients[nearest], words[nearest]
    return clients[np.argsort(words)]
