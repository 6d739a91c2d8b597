"""Which samples each client holds: dealt out once and stored, or drawn anew whenever somebody asks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, final

import numpy as np

from fedhybrid.records import FloatArray, IntArray
from fedhybrid.seeds import derive_seed

__all__ = ["DealtShards", "DrawnShards", "Shards", "dirichlet_shares"]


class Shards(Protocol):
    """The sample numbers of every client."""

    def __len__(self) -> int:
        """How many clients."""
        ...

    def __getitem__(self, client: int) -> IntArray:
        """The client's sample numbers: int64, ascending, no number twice.

        Raises:
            IndexError: No such client; they count from 0.
        """
        ...

    @property
    def sizes(self) -> IntArray:
        """How many samples each client holds; not to be written to."""
        ...


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class DealtShards:
    """Shards in one array: 8 bytes a sample and 8 a client, however many clients there are.

    Attributes:
        order: The sample numbers of client 0, then those of client 1, and so on.
        offsets: Where in `order` each client's begin, and the end of the last: one more than there are clients.
    """

    order: IntArray
    offsets: IntArray

    @classmethod
    def of(cls, parts: Sequence[IntArray]) -> DealtShards:
        """From the sample numbers of each client.

        >>> shards = DealtShards.of([np.array([0, 3]), np.array([1])])
        >>> len(shards), shards[0].tolist(), shards.sizes.tolist()
        (2, [0, 3], [2, 1])
        """
        sizes = np.array([len(part) for part in parts], dtype=np.int64)
        return cls(order=np.concatenate(parts).astype(np.int64), offsets=np.concatenate([[0], np.cumsum(sizes)]))

    @classmethod
    def by_owner(cls, owner: IntArray, clients: int) -> DealtShards:
        """From the client of each sample."""
        sizes = np.bincount(owner, minlength=clients)
        return cls(order=np.argsort(owner, kind="stable"), offsets=np.concatenate([[0], np.cumsum(sizes)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, client: int) -> IntArray:
        _check_client(client, len(self))
        return self.order[self.offsets[client] : self.offsets[client + 1]]

    @property
    def sizes(self) -> IntArray:
        """How many samples each client holds."""
        return np.diff(self.offsets)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnShards:
    """Shards that depend on (seed, client) alone and are made when they are asked for: a million clients take nothing.

    Each client has its own mix of classes, one draw from Dirichlet(alpha, ..., alpha), and as many samples of each
    class as a multinomial draw from that mix says, without replacement. Where a class has too few, samples of any class
    fill up. Different clients may hold the same sample.

    Attributes:
        labels: Class of each training sample.
        clients: How many clients.
        seed: The run's seed.
        alpha: Concentration; small gives each client a class or two.
        samples_per_client: Samples of each client, at most as many as there are.
    """

    labels: IntArray
    clients: int
    seed: int
    alpha: float
    samples_per_client: int

    @cached_property
    def _members(self) -> list[IntArray]:
        """The sample numbers of each class that occurs."""
        order = np.argsort(self.labels, kind="stable")
        _, starts = np.unique(self.labels[order], return_index=True)
        return np.split(order, starts[1:])

    def __len__(self) -> int:
        return self.clients

    def __getitem__(self, client: int) -> IntArray:
        _check_client(client, self.clients)
        rng = np.random.default_rng(derive_seed(self.seed, purpose="partition/drawn", client=client))
        wanted = rng.multinomial(self.samples_per_client, dirichlet_shares(rng, self.alpha, len(self._members)))
        taken = [
            rng.choice(members, min(count, len(members)), replace=False, shuffle=False)
            for members, count in zip(self._members, wanted.tolist(), strict=True)
            if count
        ]
        drawn = np.concatenate(taken)
        if missing := self.samples_per_client - len(drawn):
            others = np.setdiff1d(np.arange(len(self.labels)), drawn)
            drawn = np.concatenate([drawn, rng.choice(others, missing, replace=False, shuffle=False)])
        return np.sort(drawn)

    @property
    def sizes(self) -> IntArray:
        """The same number for each client; a view of one number."""
        return np.broadcast_to(np.int64(self.samples_per_client), (self.clients,))


def dirichlet_shares(rng: np.random.Generator, alpha: float, count: int) -> FloatArray:
    """One draw from Dirichlet(alpha, ..., alpha): `count` shares that sum to 1.

    A tiny alpha can underflow to 0/0; its limit gives everything to one of them.
    """
    shares = rng.dirichlet(np.full(count, alpha))
    if all(map(math.isfinite, (shares.min(), shares.max()))):
        return shares
    everything = np.zeros(count)
    everything[rng.integers(count)] = 1
    return everything


def _check_client(client: int, clients: int) -> None:
    if not 0 <= client < clients:
        raise IndexError(f"client {client} of {clients}")
