"""Who holds which sample: four ways to deal a training set out to clients.

Every way gives sorted sample numbers per client, no sample twice, all samples dealt, at least one sample each, and is a
function of labels, options and seed alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedhybrid.errors import ConfigError
from fedhybrid.records import IntArray
from fedhybrid.seeds import derive_seed

__all__ = ["PartitionSpec", "dirichlet", "iid", "natural", "shards"]


@dataclass(frozen=True, kw_only=True)
class PartitionSpec:
    """Options of all partitions; each reads its own.

    Attributes:
        clients: How many clients.
        seed: The run's seed.
        alpha: Concentration of `dirichlet`; small is uneven (0.1: a client sees a class or two), large is even.
        shards_per_client: Pieces that each client of `shards` gets.
        natural_ids: Whose sample each sample is, for `natural`.
    """

    clients: int
    seed: int
    alpha: float
    shards_per_client: int = 2
    natural_ids: IntArray | None = None

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator that depends on the seed and the purpose alone."""
        return np.random.default_rng(derive_seed(self.seed, purpose=f"partition/{purpose}"))


def iid(labels: IntArray, spec: PartitionSpec) -> list[IntArray]:
    """A random deal in parts of equal size (sizes differ by at most one)."""
    order = spec.rng("iid").permutation(len(labels))
    return [np.sort(part) for part in np.array_split(order, spec.clients)]


def dirichlet(labels: IntArray, spec: PartitionSpec) -> list[IntArray]:
    """For each class, the clients' shares of it are one draw from Dirichlet(alpha, ..., alpha).

    Source: T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
    Visual Classification", 2019, https://arxiv.org/abs/1909.06335; drawn per label as in M. Yurochkin et al., "Bayesian
    Nonparametric Federated Learning of Neural Networks", ICML 2019.
    Differs: implementations draw again until no client is empty, which need never happen with many clients and a small
    alpha. Here each empty client, in order of its number, takes one random sample from the client that then holds the
    most (the lowest number among equals); all other shares stay as drawn.
    """
    if not (math.isfinite(spec.alpha) and spec.alpha > 0):
        raise ConfigError(f"data.alpha must be a positive number for the partition 'dirichlet', got {spec.alpha}")
    rng = spec.rng("dirichlet")
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        share_ratio = rng.dirichlet(np.full(spec.clients, spec.alpha))
        # A tiny alpha can underflow to 0/0; its limit gives the whole class to one client.
        if not np.all(np.isfinite(share_ratio)):
            share_ratio = np.eye(spec.clients)[rng.integers(spec.clients)]
        cuts = np.floor(np.cumsum(share_ratio)[:-1] * len(members)).astype(np.int64)
        ends = np.concatenate([np.minimum(cuts, len(members)), [len(members)]])
        owner[members] = np.repeat(np.arange(spec.clients), np.diff(ends, prepend=0))
    held = _by_owner(owner, spec.clients)
    sizes = np.array([len(part) for part in held])
    for client in np.flatnonzero(sizes == 0):
        donor = int(np.argmax(sizes))
        taken = int(rng.integers(sizes[donor]))
        held[client] = held[donor][taken : taken + 1]
        held[donor] = np.delete(held[donor], taken)
        sizes[donor] -= 1
        sizes[client] = 1
    return held


def shards(labels: IntArray, spec: PartitionSpec) -> list[IntArray]:
    """Samples sorted by label, cut into `clients * shards_per_client` pieces, dealt at random.

    Source: H. B. McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS
    2017, https://arxiv.org/abs/1602.05629, section 3 (the pathological split of MNIST).
    """
    pieces = spec.clients * spec.shards_per_client
    if spec.shards_per_client < 1 or pieces > len(labels):
        raise ConfigError(
            f"data.shards_per_client must be at least 1 and leave each shard a sample: {spec.clients} clients x "
            f"{spec.shards_per_client} shards, {len(labels)} samples"
        )
    rng = spec.rng("shards")
    order = rng.permutation(len(labels))
    by_label = order[np.argsort(labels[order], kind="stable")]
    piece_of = np.repeat(np.arange(pieces), [len(part) for part in np.array_split(by_label, pieces)])
    owner = np.empty(len(labels), dtype=np.int64)
    owner[by_label] = (rng.permutation(pieces) % spec.clients)[piece_of]
    return _by_owner(owner, spec.clients)


def natural(labels: IntArray, spec: PartitionSpec) -> list[IntArray]:
    """Each person's samples stay together; for data sets that know their people, which no built-in one does.

    With fewer clients than people, the people are dealt out at random, as evenly as their number allows.
    """
    if spec.natural_ids is None:
        raise ConfigError(
            "partition 'natural' needs a dataset that says whose each sample is (natural_ids), which no built-in one "
            "does: use 'dirichlet', 'shards' or 'iid'"
        )
    if len(spec.natural_ids) != len(labels):
        raise ConfigError(f"natural_ids must be one per sample: {len(spec.natural_ids)} ids, {len(labels)} samples")
    people, person = np.unique(spec.natural_ids, return_inverse=True)
    if spec.clients > len(people):
        raise ConfigError(f"data.clients is {spec.clients}, but the dataset has {len(people)} natural clients")
    if spec.clients == len(people):
        return _by_owner(person, spec.clients)
    client_of = spec.rng("natural").permutation(len(people)) % spec.clients
    return _by_owner(client_of[person], spec.clients)


def _by_owner(owner: IntArray, clients: int) -> list[IntArray]:
    """Sorted sample numbers of each client."""
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.cumsum(np.bincount(owner, minlength=clients))[:-1])
