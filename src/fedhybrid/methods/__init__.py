"""Published systems for federated learning, one file each, under one protocol (`fedhybrid.protocols.Method`).

A method is a frozen dataclass: its fields are its options, its verbs are functions of what they are given. To add
one, write its file (it opens with the paper), add its line to `METHODS`; the contract suite then tests it. One that
lives elsewhere is called `package.module:Class`.
"""

from __future__ import annotations

from collections.abc import Callable

from fedhybrid.methods.division import Division
from fedhybrid.methods.fedasync import FedAsync
from fedhybrid.methods.fedavg import FedAvg
from fedhybrid.methods.fedbuff import FedBuff
from fedhybrid.methods.fedhybrid import FedHybrid
from fedhybrid.methods.fedprox import FedProx
from fedhybrid.methods.mesa import Mesa
from fedhybrid.protocols import Method
from fedhybrid.registry import import_factory, lookup

__all__ = ["METHODS", "Division", "FedAsync", "FedAvg", "FedBuff", "FedHybrid", "FedProx", "Mesa", "find_method"]

METHODS: dict[str, type[Method]] = {
    "division": Division,
    "fedasync": FedAsync,
    "fedavg": FedAvg,
    "fedbuff": FedBuff,
    "fedhybrid": FedHybrid,
    "fedprox": FedProx,
    "mesa": Mesa,
}


def find_method(name: str) -> Callable[..., Method]:
    """The method called `name`, from the table or, with a colon, imported from its module.

    Raises:
        ConfigError: No such row, module or attribute, or the module fails while it is imported.
    """
    return import_factory("method", name, "a method") if ":" in name else lookup("method", METHODS, name)
