"""Data sets and the ways to deal them out to clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedhybrid.data.cifar10 import load_cifar10
from fedhybrid.data.digits import load_digits
from fedhybrid.data.fashion_mnist import load_fashion_mnist
from fedhybrid.data.hub import HUB_PREFIX, hub_loader, load_hub
from fedhybrid.data.partition import PartitionSpec, dirichlet, drawn, iid, label_shards, natural
from fedhybrid.data.plays import load_plays
from fedhybrid.data.shakespeare import load_shakespeare
from fedhybrid.data.shards import DealtShards, DrawnShards, Shards
from fedhybrid.data.split import Dataset, ImageSplit, SignalSplit, Split, TextSplit
from fedhybrid.data.uci_har import load_uci_har
from fedhybrid.records import IntArray
from fedhybrid.registry import lookup

__all__ = [
    "ALONE_PARTITIONS",
    "DATASETS",
    "HUB_PREFIX",
    "PARTITIONS",
    "Dataset",
    "DealtShards",
    "DrawnShards",
    "ImageSplit",
    "PartitionSpec",
    "Shards",
    "SignalSplit",
    "Split",
    "TextSplit",
    "find_loader",
    "load_dataset",
    "load_hub",
    "partition_data",
]

DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "cifar10": load_cifar10,
    "digits": load_digits,
    "fashion-mnist": load_fashion_mnist,
    "shakespeare": load_shakespeare,
    "shakespeare-plays": load_plays,
    "uci-har": load_uci_har,
}

PARTITIONS: dict[str, Callable[[IntArray, PartitionSpec], Shards]] = {
    "dirichlet": dirichlet,
    "drawn": drawn,
    "iid": iid,
    "natural": natural,
    "shards": label_shards,
}

ALONE_PARTITIONS = ("dirichlet", "natural")  # these can deal classes to some of the clients alone


def find_loader(name: str) -> Callable[[Path | None], Dataset]:
    """The loader of that name: a row of `DATASETS` or, with "flwr:" before it, of a data set of other people's.

    Raises:
        ConfigError: No such row, or what follows "flwr:" cannot be a data set's name.
    """
    if name.startswith(HUB_PREFIX):
        return hub_loader(name.removeprefix(HUB_PREFIX))
    return lookup("dataset", DATASETS, name)


def load_dataset(name: str, root: Path | None = None) -> Dataset:
    """The data set of that name, as `find_loader` finds it; `root` is the folder of those that are not embedded.

    Raises:
        ConfigError: Unknown name, missing or damaged files.
    """
    return find_loader(name)(root)


def partition_data(
    name: str,
    labels: IntArray,
    *,
    clients: int,
    seed: int,
    alpha: float,
    shards_per_client: int = 2,
    samples_per_client: int = 64,
    natural_ids: IntArray | None = None,
    holders: Mapping[int, NDArray[np.bool_]] | None = None,
) -> Shards:
    """Sorted sample numbers of each client: disjoint, covering all samples, at least one each; but see "drawn".

    Args:
        name: A row of `PARTITIONS`.
        labels: Class of each training sample.
        clients: How many clients.
        seed: The run's seed; the same seed gives the same deal.
        alpha: See `PartitionSpec`, as for the three options after it.
        shards_per_client: Read by "shards".
        samples_per_client: Read by "drawn".
        natural_ids: Read by "natural".
        holders: Which clients may hold samples of a class, for classes that not all may; read by "dirichlet" and
            "natural", which then leaves the others' samples out.

    Raises:
        ConfigError: Unknown name, an option outside its range, more clients than samples, or a client left with none.

    >>> shards = partition_data("iid", np.zeros(4, np.int64), clients=2, seed=0, alpha=1.0)
    >>> shards[0].tolist(), shards[1].tolist()
    ([1, 3], [0, 2])
    """
    spec = PartitionSpec(
        clients=clients,
        seed=seed,
        alpha=alpha,
        shards_per_client=shards_per_client,
        samples_per_client=samples_per_client,
        natural_ids=natural_ids,
        holders=holders or {},
    )
    return lookup("partition", PARTITIONS, name)(np.asarray(labels, dtype=np.int64), spec)
