"""Gradient accumulation: one batch as several micro-batches, whose gradients are summed before the updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from fedhybrid.errors import ConfigError

__all__ = ["check_micro_batches", "first_part", "joined_shape", "parts_of", "scaled_loss"]

LossFunction = Callable[..., Any]


def check_micro_batches(micro_batches: int) -> list[str]:
    """What is wrong with the option, in words."""
    good = isinstance(micro_batches, int) and not isinstance(micro_batches, bool) and micro_batches >= 1
    return [] if good else [f"micro_batches must be a whole number from 1 on, got {micro_batches!r}"]


def parts_of(tensors: Sequence[Tensor], micro_batches: int) -> list[list[Tensor]]:
    """The tensors of each micro-batch: equal slices along the first dimension, as views.

    Raises:
        ConfigError: A tensor has no first dimension, or it is not divisible.
    """
    problems = [
        f"micro_batches={micro_batches}: every batch tensor is cut along its first dimension, which must be "
        f"divisible by {micro_batches}; found shape {list(t.shape)}"
        for t in tensors
        if t.dim() == 0 or t.shape[0] % micro_batches or not t.shape[0]
    ]
    if problems:
        raise ConfigError(problems)
    sizes = [t.shape[0] // micro_batches for t in tensors]
    return [
        [t.narrow(0, part * size, size) for t, size in zip(tensors, sizes, strict=True)]
        for part in range(micro_batches)
    ]


def first_part(batch: Any, micro_batches: int) -> Any:
    """The first micro-batch, in the batch's structure."""
    leaves, structure = pytree.tree_flatten(batch)
    return pytree.tree_unflatten(parts_of(leaves, micro_batches)[0], structure)


def scaled_loss(loss_fn: LossFunction, micro_batches: int) -> LossFunction:
    """`loss_fn` over the number of micro-batches, so that the gradients' sum is that of the mean loss."""
    if micro_batches == 1:
        return loss_fn

    def scaled(first: Any, second: Any) -> Any:
        result = loss_fn(first, second)
        if isinstance(result, tuple) and len(result) == 2:
            return result[0] / micro_batches, result[1]
        return result / micro_batches

    return scaled


def joined_shape(aux: Sequence[int], micro_batches: int) -> tuple[int, ...]:
    """Shape of the auxiliary outputs of all micro-batches, one after the other along the first dimension.

    Raises:
        ConfigError: They have no first dimension.
    """
    if not aux:
        raise ConfigError(
            f"micro_batches={micro_batches} joins what loss_fn returns beside the loss along its first dimension, but "
            "that is a scalar: return one value per sample"
        )
    return (aux[0] * micro_batches, *aux[1:])
