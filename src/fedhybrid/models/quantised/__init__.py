"""Networks of int8: a quantised graph made from a trained float network, which can be trained, or parts of it."""

from __future__ import annotations

from fedhybrid.models.quantised.graph import (
    Add,
    Conv,
    Flatten,
    Graph,
    Input,
    LayerUpdate,
    MaxPool,
    Mean,
    Operation,
    Pad,
    Subsample,
)
from fedhybrid.models.quantised.network import QuantisedConv, QuantisedNet
from fedhybrid.models.quantised.quantise import quantise

__all__ = [
    "Add",
    "Conv",
    "Flatten",
    "Graph",
    "Input",
    "LayerUpdate",
    "MaxPool",
    "Mean",
    "Operation",
    "Pad",
    "QuantisedConv",
    "QuantisedNet",
    "Subsample",
    "quantise",
]
