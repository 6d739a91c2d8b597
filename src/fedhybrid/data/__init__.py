"""Data sets and the ways to deal them out to clients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedhybrid.data.cifar10 import load_cifar10
from fedhybrid.data.digits import load_digits
from fedhybrid.data.fashion_mnist import load_fashion_mnist
from fedhybrid.data.partition import PartitionSpec, dirichlet, iid, natural, shards
from fedhybrid.data.split import Dataset, Split
from fedhybrid.errors import ConfigError
from fedhybrid.records import IntArray
from fedhybrid.registry import lookup

__all__ = ["DATASETS", "PARTITIONS", "Dataset", "PartitionSpec", "Split", "load_dataset", "partition_data"]

DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "cifar10": load_cifar10,
    "digits": load_digits,
    "fashion-mnist": load_fashion_mnist,
}

PARTITIONS: dict[str, Callable[[IntArray, PartitionSpec], list[IntArray]]] = {
    "dirichlet": dirichlet,
    "iid": iid,
    "natural": natural,
    "shards": shards,
}


def load_dataset(name: str, root: Path | None = None) -> Dataset:
    """The data set of that name in `DATASETS`; `root` is the folder of those that are not embedded.

    Raises:
        ConfigError: Unknown name, missing or damaged files.
    """
    return lookup("dataset", DATASETS, name)(root)


def partition_data(
    name: str,
    labels: IntArray,
    *,
    clients: int,
    seed: int,
    alpha: float,
    shards_per_client: int = 2,
    natural_ids: IntArray | None = None,
) -> list[IntArray]:
    """Sorted sample numbers of each client: disjoint, covering all samples, at least one each.

    Args:
        name: A row of `PARTITIONS`.
        labels: Class of each training sample.
        clients: How many clients.
        seed: The run's seed; the same seed gives the same deal.
        alpha: See `PartitionSpec`, as for the two options after it.
        shards_per_client: Read by "shards".
        natural_ids: Read by "natural".

    Raises:
        ConfigError: Unknown name, an option outside its range, or more clients than samples.

    >>> [part.tolist() for part in partition_data("iid", np.zeros(4, np.int64), clients=2, seed=0, alpha=1.0)]
    [[1, 3], [0, 2]]
    """
    partition = lookup("partition", PARTITIONS, name)
    if not 1 <= clients <= len(labels):
        raise ConfigError(f"data.clients must be 1 to {len(labels):,} (the training samples), got {clients:,}")
    spec = PartitionSpec(
        clients=clients, seed=seed, alpha=alpha, shards_per_client=shards_per_client, natural_ids=natural_ids
    )
    return partition(np.asarray(labels, dtype=np.int64), spec)
