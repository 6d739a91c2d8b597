"""Published systems for federated learning, one file each, under one protocol (`fedhybrid.protocols.Method`).

A method is a frozen dataclass: its fields are its options, its verbs are functions of what they are given. To add
one, write its file (it opens with the paper), add its line to `METHODS`; the contract suite then tests it. One that
lives elsewhere is called `package.module:Class`.
"""

from __future__ import annotations

from collections.abc import Callable

from fedhybrid.methods.bsr import Bsr
from fedhybrid.methods.checkpoint_per_block import CheckpointPerBlock
from fedhybrid.methods.codedfedl import CodedFedL
from fedhybrid.methods.depthfl import DepthFL
from fedhybrid.methods.division import Division
from fedhybrid.methods.elastic_trainer import ElasticTrainer
from fedhybrid.methods.fedasync import FedAsync
from fedhybrid.methods.fedavg import FedAvg
from fedhybrid.methods.fedbuff import FedBuff
from fedhybrid.methods.fedel import FedEL
from fedhybrid.methods.fedhybrid import FedHybrid
from fedhybrid.methods.fedprox import FedProx
from fedhybrid.methods.foresight_zo import ForesightZo
from fedhybrid.methods.heterofl import HeteroFL
from fedhybrid.methods.knn import Knn
from fedhybrid.methods.mesa import Mesa
from fedhybrid.methods.mest import Mest
from fedhybrid.methods.mtn import Mtn
from fedhybrid.methods.replay import Replay
from fedhybrid.methods.scfl import Scfl
from fedhybrid.methods.smartsplit import SmartSplit
from fedhybrid.methods.tea_fed import TeaFed
from fedhybrid.methods.teasq_fed import TeasqFed
from fedhybrid.methods.tiny_training import TinyTraining
from fedhybrid.methods.uniform_compression import UniformCompression
from fedhybrid.protocols import Method
from fedhybrid.registry import import_factory, lookup

__all__ = [
    "METHODS",
    "Bsr",
    "CheckpointPerBlock",
    "CodedFedL",
    "DepthFL",
    "Division",
    "ElasticTrainer",
    "FedAsync",
    "FedAvg",
    "FedBuff",
    "FedEL",
    "FedHybrid",
    "FedProx",
    "ForesightZo",
    "HeteroFL",
    "Knn",
    "Mesa",
    "Mest",
    "Mtn",
    "Replay",
    "Scfl",
    "SmartSplit",
    "TeaFed",
    "TeasqFed",
    "TinyTraining",
    "UniformCompression",
    "find_method",
]

METHODS: dict[str, type[Method]] = {
    "bsr": Bsr,
    "checkpoint-per-block": CheckpointPerBlock,
    "codedfedl": CodedFedL,
    "depthfl": DepthFL,
    "division": Division,
    "elastic-trainer": ElasticTrainer,
    "fedasync": FedAsync,
    "fedavg": FedAvg,
    "fedbuff": FedBuff,
    "fedel": FedEL,
    "fedhybrid": FedHybrid,
    "fedprox": FedProx,
    "foresight-zo": ForesightZo,
    "heterofl": HeteroFL,
    "knn": Knn,
    "mesa": Mesa,
    "mest": Mest,
    "mtn": Mtn,
    "replay": Replay,
    "scfl": Scfl,
    "smartsplit": SmartSplit,
    "tea-fed": TeaFed,
    "teasq-fed": TeasqFed,
    "tiny-training": TinyTraining,
    "uniform-compression": UniformCompression,
}


def find_method(name: str) -> Callable[..., Method]:
    """The method called `name`, from the table or, with a colon, imported from its module.

    Raises:
        ConfigError: No such row, module or attribute, or the module fails while it is imported.
    """
    return import_factory("method", name, "a method") if ":" in name else lookup("method", METHODS, name)
