"""Published systems for federated learning, one file each, under one protocol (`fedhybrid.protocols.Method`).

A method is a frozen dataclass: its fields are its options, its four verbs are functions of what they are given. To add
one, write its file (it opens with the paper), add its line to `METHODS`; the contract suite then tests it.
"""

from __future__ import annotations

from fedhybrid.methods.division import Division
from fedhybrid.methods.fedasync import FedAsync
from fedhybrid.methods.fedavg import FedAvg
from fedhybrid.methods.fedbuff import FedBuff
from fedhybrid.methods.fedhybrid import FedHybrid
from fedhybrid.methods.fedprox import FedProx
from fedhybrid.methods.mesa import Mesa
from fedhybrid.protocols import Method

__all__ = ["METHODS", "Division", "FedAsync", "FedAvg", "FedBuff", "FedHybrid", "FedProx", "Mesa"]

METHODS: dict[str, type[Method]] = {
    "division": Division,
    "fedasync": FedAsync,
    "fedavg": FedAvg,
    "fedbuff": FedBuff,
    "fedhybrid": FedHybrid,
    "fedprox": FedProx,
    "mesa": Mesa,
}
