"""Who holds which sample: four ways to deal a training set out to clients, and one to draw from it.

Every deal gives sorted sample numbers per client, no sample twice, all samples dealt and at least one sample each.
Every way is a function of labels, options and seed alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedhybrid.data.shards import DealtShards, DrawnShards, dirichlet_shares
from fedhybrid.errors import ConfigError
from fedhybrid.records import IntArray
from fedhybrid.seeds import derive_seed

__all__ = ["PartitionSpec", "dirichlet", "drawn", "iid", "label_shards", "natural"]


@dataclass(frozen=True, kw_only=True)
class PartitionSpec:
    """Options of all partitions; each reads its own.

    Attributes:
        clients: How many clients.
        seed: The run's seed.
        alpha: Concentration of `dirichlet` and `drawn`; small is uneven (0.1: a client sees a class or two), large is
            even.
        shards_per_client: Pieces that each client of `shards` gets.
        samples_per_client: Samples that each client of `drawn` gets.
        natural_ids: Whose sample each sample is, for `natural`.
    """

    clients: int
    seed: int
    alpha: float
    shards_per_client: int = 2
    samples_per_client: int = 64
    natural_ids: IntArray | None = None

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator that depends on the seed and the purpose alone."""
        return np.random.default_rng(derive_seed(self.seed, purpose=f"partition/{purpose}"))


def iid(labels: IntArray, spec: PartitionSpec) -> DealtShards:
    """A random deal in parts of equal size (sizes differ by at most one)."""
    _check_clients(labels, spec)
    order = spec.rng("iid").permutation(len(labels))
    return DealtShards.of([np.sort(part) for part in np.array_split(order, spec.clients)])


def dirichlet(labels: IntArray, spec: PartitionSpec) -> DealtShards:
    """For each class, the clients' shares of it are one draw from Dirichlet(alpha, ..., alpha).

    Source: T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
    Visual Classification", 2019, https://arxiv.org/abs/1909.06335; drawn per label as in M. Yurochkin et al., "Bayesian
    Nonparametric Federated Learning of Neural Networks", ICML 2019.
    Differs: implementations draw again until no client is empty, which need never happen with many clients and a small
    alpha. Here each empty client, in order of its number, takes one random sample from the client that then holds the
    most (the lowest number among equals); all other shares stay as drawn.
    """
    _check_clients(labels, spec)
    _check_alpha("dirichlet", spec)
    rng = spec.rng("dirichlet")
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        share_ratio = dirichlet_shares(rng, spec.alpha, spec.clients)
        cuts = np.floor(np.cumsum(share_ratio)[:-1] * len(members)).astype(np.int64)
        ends = np.concatenate([np.minimum(cuts, len(members)), [len(members)]])
        owner[members] = np.repeat(np.arange(spec.clients), np.diff(ends, prepend=0))
    dealt = DealtShards.by_owner(owner, spec.clients)
    sizes = dealt.sizes
    if sizes.all():
        return dealt
    held = [dealt[client] for client in range(spec.clients)]
    for client in np.flatnonzero(sizes == 0):
        donor = int(np.argmax(sizes))
        taken = int(rng.integers(sizes[donor]))
        held[client] = held[donor][taken : taken + 1]
        held[donor] = np.delete(held[donor], taken)
        sizes[donor] -= 1
        sizes[client] = 1
    return DealtShards.of(held)


def drawn(labels: IntArray, spec: PartitionSpec) -> DrawnShards:
    """Each client draws samples with its own Dirichlet(alpha) mix of classes, when asked: for very large fleets.

    Clients may outnumber the samples, and share them: with a million clients every sample is on many devices, as if it
    had been drawn with replacement from what people have.
    """
    problems = []
    if spec.clients < 1:
        problems.append(f"data.clients must be at least 1, got {spec.clients:,}")
    if not 1 <= spec.samples_per_client <= len(labels):
        problems.append(
            f"data.samples_per_client must be 1 to {len(labels):,} (the training samples), got "
            f"{spec.samples_per_client:,}"
        )
    if problems:
        raise ConfigError(problems)
    _check_alpha("drawn", spec)
    return DrawnShards(
        labels=labels,
        clients=spec.clients,
        seed=spec.seed,
        alpha=spec.alpha,
        samples_per_client=spec.samples_per_client,
    )


def label_shards(labels: IntArray, spec: PartitionSpec) -> DealtShards:
    """Samples sorted by label, cut into `clients * shards_per_client` pieces, dealt at random.

    Source: H. B. McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS
    2017, https://arxiv.org/abs/1602.05629, section 3 (the pathological split of MNIST).
    """
    _check_clients(labels, spec)
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
    return DealtShards.by_owner(owner, spec.clients)


def natural(labels: IntArray, spec: PartitionSpec) -> DealtShards:
    """Each person's samples stay together; for data sets that know their people.

    With fewer clients than people, the people are dealt out at random, as evenly as their number allows.
    """
    _check_clients(labels, spec)
    if spec.natural_ids is None:
        raise ConfigError(
            "partition 'natural' needs a dataset that says whose each sample is, as 'shakespeare' and 'uci-har' do; "
            "this one does not: use 'dirichlet', 'drawn', 'iid' or 'shards'"
        )
    if len(spec.natural_ids) != len(labels):
        raise ConfigError(f"natural_ids must be one per sample: {len(spec.natural_ids)} ids, {len(labels)} samples")
    people, person = np.unique(spec.natural_ids, return_inverse=True)
    if spec.clients > len(people):
        raise ConfigError(
            f"data.clients is {spec.clients:,}, but the dataset has {len(people):,} natural clients; ask for at most "
            f"{len(people):,}"
        )
    if spec.clients == len(people):
        return DealtShards.by_owner(person, spec.clients)
    client_of = spec.rng("natural").permutation(len(people)) % spec.clients
    return DealtShards.by_owner(client_of[person], spec.clients)


def _check_clients(labels: IntArray, spec: PartitionSpec) -> None:
    """Each client of a deal gets a sample of its own."""
    if not 1 <= spec.clients <= len(labels):
        raise ConfigError(f"data.clients must be 1 to {len(labels):,} (the training samples), got {spec.clients:,}")


def _check_alpha(name: str, spec: PartitionSpec) -> None:
    if not (math.isfinite(spec.alpha) and spec.alpha > 0):
        raise ConfigError(f"data.alpha must be a positive number for the partition {name!r}, got {spec.alpha}")
