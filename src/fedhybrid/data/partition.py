"""Who holds which sample: four ways to deal a training set out to clients, and one to draw from it.

Every deal gives sorted sample numbers per client, no sample twice, all samples dealt and at least one sample each;
`natural` alone leaves samples out, those of people whose devices may not hold their class (`PartitionSpec.holders`).
Every way is a function of labels, options and seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

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
        holders: Which clients may hold samples of a class, for classes that not all may; for `dirichlet` and `natural`.
    """

    clients: int
    seed: int
    alpha: float
    shards_per_client: int = 2
    samples_per_client: int = 64
    natural_ids: IntArray | None = None
    holders: Mapping[int, NDArray[np.bool_]] = field(default_factory=dict)

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
    most (the lowest number among equals); all other shares stay as drawn. A class that has `holders` is shared out
    among them, and an empty client is given a sample that it may hold.
    """
    _check_clients(labels, spec)
    _check_alpha("dirichlet", spec)
    _check_holders(spec)
    rng = spec.rng("dirichlet")
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        holders = _holders(spec, int(label))
        share_ratio = dirichlet_shares(rng, spec.alpha, len(holders))
        cuts = np.floor(np.cumsum(share_ratio)[:-1] * len(members)).astype(np.int64)
        ends = np.concatenate([np.minimum(cuts, len(members)), [len(members)]])
        owner[members] = np.repeat(holders, np.diff(ends, prepend=0))
    dealt = DealtShards.by_owner(owner, spec.clients)
    return dealt if dealt.sizes.all() else _without_empty(dealt, owner, labels, spec, rng)


def _holders(spec: PartitionSpec, label: int) -> IntArray:
    """Clients that may hold samples of this class, ascending."""
    return np.flatnonzero(spec.holders[label]) if label in spec.holders else np.arange(spec.clients)


def _without_empty(
    dealt: DealtShards, owner: IntArray, labels: IntArray, spec: PartitionSpec, rng: np.random.Generator
) -> DealtShards:
    """Each client that has nothing gets one sample of the client that has the most that it may hold."""
    held = [dealt[client] for client in range(spec.clients)]
    sizes = dealt.sizes
    held_alone = {label: np.bincount(owner[labels == label], minlength=spec.clients) for label in spec.holders}
    for client in np.flatnonzero(sizes == 0):
        barred = [label for label, may in spec.holders.items() if not may[client]]
        spare = sizes
        if barred:
            spare = np.where(sizes > 1, sizes - np.sum([held_alone[label] for label in barred], axis=0), 0)
        donor = int(np.argmax(spare))
        if spare[donor] == 0:
            raise ConfigError(
                f"client {client} gets no sample: its tier may hold none of the classes that others can spare; let "
                "fewer classes be held alone, or make data.alpha larger"
            )
        free = held[donor][~np.isin(labels[held[donor]], barred)]
        taken = free[int(rng.integers(spare[donor]))]
        held[client] = np.array([taken])
        held[donor] = held[donor][held[donor] != taken]
        for counts in (sizes, *(each for label, each in held_alone.items() if label == labels[taken])):
            counts[donor] -= 1
            counts[client] += 1
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

    With fewer clients than people, the people are dealt out at random, as evenly as their number allows. Samples of
    classes that a person's device may not hold (`holders`) are nobody's.
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
    owner = person
    if spec.clients < len(people):
        owner = (spec.rng("natural").permutation(len(people)) % spec.clients)[person]
    _check_holders(spec)
    allowed = np.ones(len(labels), dtype=bool)
    for label, may in spec.holders.items():
        allowed &= (labels != label) | may[owner]
    rows = np.flatnonzero(allowed)
    dealt = DealtShards.by_owner(owner[rows], spec.clients)
    if len(empty := np.flatnonzero(dealt.sizes == 0)):
        raise ConfigError(
            f"{len(empty):,} of {spec.clients:,} clients ({', '.join(map(str, empty[:5]))}"
            f"{', ...' if len(empty) > 5 else ''}) have nothing left: all their samples are of classes that other "
            "tiers hold alone; take some out of data.alone_classes, or use the partition 'dirichlet'"
        )
    return replace(dealt, order=rows[dealt.order])


def _check_clients(labels: IntArray, spec: PartitionSpec) -> None:
    """Each client of a deal gets a sample of its own."""
    if not 1 <= spec.clients <= len(labels):
        raise ConfigError(f"data.clients must be 1 to {len(labels):,} (the training samples), got {spec.clients:,}")


def _check_alpha(name: str, spec: PartitionSpec) -> None:
    if not (math.isfinite(spec.alpha) and spec.alpha > 0):
        raise ConfigError(f"data.alpha must be a positive number for the partition {name!r}, got {spec.alpha}")


def _check_holders(spec: PartitionSpec) -> None:
    """Each class that not all may hold, somebody may."""
    if nobodys := sorted(label for label, may in spec.holders.items() if not may.any()):
        raise ConfigError(
            f"data.alone_classes: nobody may hold class {', '.join(map(str, nobodys))}, because none of the "
            f"{spec.clients:,} clients is in data.alone_tiers; name other tiers, or make data.clients larger"
        )
