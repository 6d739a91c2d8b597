"""Arithmetic on named tensors (weights, updates): the one form in which models travel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["Tensors", "average", "buffers_of", "detached_copy", "load_into", "tensors_of", "total_bytes"]

Tensors = dict[str, Tensor]


def tensors_of(model: nn.Module) -> Tensors:
    """The model's own parameters and buffers by name (no copy), each shared tensor once."""
    found: Tensors = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found[name] = tensor.detach()
    return found


def buffers_of(model: nn.Module) -> frozenset[str]:
    """Names of those among them that no gradient changes."""
    return frozenset(name for name, _ in model.named_buffers())


def detached_copy(tensors: Mapping[str, Tensor]) -> Tensors:
    """A copy that shares no memory with the original."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def load_into(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Copies `source` into `target` in place; both must have the same names and shapes."""
    assert target.keys() == source.keys(), sorted(target.keys() ^ source.keys())
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


def total_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the elements of all tensors: what sending them uncompressed costs."""
    return sum(t.numel() * t.element_size() for t in tensors.values())


def average(many: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensors:
    """Weighted mean of equally named tensors, summed in float64 in the given order.

    Integer tensors (batch counts of normalisation layers) are rounded to the nearest integer.
    """
    assert many
    assert len(many) == len(weights)
    total = float(sum(weights))
    assert total > 0, "at least one weight must be positive"
    mean: Tensors = {}
    for name, first in many[0].items():
        acc = torch.zeros(first.shape, dtype=torch.float64)
        for tensors, weight in zip(many, weights, strict=True):
            acc.add_(tensors[name].detach().to("cpu", torch.float64), alpha=weight / total)
        mean[name] = (acc if first.is_floating_point() else acc.round()).to(first.dtype)
    return mean
