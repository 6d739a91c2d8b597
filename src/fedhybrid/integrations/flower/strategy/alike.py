"""Whether two models compute the same, so that what was captured of one serves for the other."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from fedhybrid.protocols import Optimizer

__all__ = ["alike_but_lr", "alike_models"]

_TENSORS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


def alike_models(first: nn.Module, second: nn.Module) -> bool:
    """Whether both are built of the same modules with the same attributes, and tensors of the same layout.

    Apps build their network anew for each message; a capture takes far longer than this look. An attribute that cannot
    be compared counts as different.
    """
    if first is second:
        return True
    ones, others = dict(first.named_modules()), dict(second.named_modules())
    # Shared parameters have one name only, so that equal names are shared in the same way.
    names = [[name for name, _ in model.named_parameters()] for model in (first, second)]
    same = ones.keys() == others.keys() and names[0] == names[1]
    return same and all(_alike(module, others[name]) for name, module in ones.items())


def _alike(one: nn.Module, other: nn.Module) -> bool:
    if type(one) is not type(other):
        return False
    for table in ("_parameters", "_buffers"):
        tensors, others = getattr(one, table), getattr(other, table)
        if tensors.keys() != others.keys() or any(_layout(tensors[k]) != _layout(others[k]) for k in tensors):
            return False
    own = {name: value for name, value in vars(one).items() if name not in _TENSORS}
    its = {name: value for name, value in vars(other).items() if name not in _TENSORS}
    return own.keys() == its.keys() and all(_equal(value, its[name]) for name, value in own.items())


def _layout(tensor: Tensor | None) -> object:
    return tensor if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad)


def _equal(one: Any, other: Any) -> bool:
    """Equal plain values; anything else must be the very same object."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    return isinstance(one, (bool, int, float, str, bytes)) and bool(one == other)


def alike_but_lr(first: Optimizer, second: Optimizer) -> bool:
    """Whether two optimizers differ in nothing but their learning rate, which a step can change."""
    if first is second:
        return True
    one: Any = first
    other: Any = second
    if type(one) is not type(other) or not dataclasses.is_dataclass(type(one)):
        return False
    return bool(dataclasses.replace(one, lr=second.lr) == other)
