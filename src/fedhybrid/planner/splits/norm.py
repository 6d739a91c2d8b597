"""Batch norm in the memory of its input, and its backward pass channel by channel: both exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedhybrid.graph import Value
from fedhybrid.planner.splits.base import Split

__all__ = ["batch_norm"]


def split_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    *,
    chunks: int = 1,
    into: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm whose output takes over `into`; the kernel reads all of a channel before it writes it.

    It needs no memory beside its results, so there is nothing to gain from chunks: it always runs whole, and running
    statistics are written once.

    Args:
        x: Shape (batch, channels, ...).
        weight, bias, running_mean, running_var: Shape (channels,) or None.
        training, momentum, eps: As for the operator.
        chunks: Ignored.
        into: Memory laid out as the output, usually the input itself.

    Returns:
        Output, saved mean, saved 1 / standard deviation, as the operator (the last two are empty outside training).
    """
    options = (x, weight, bias, running_mean, running_var, training, momentum, eps)
    if into is None:
        return torch.ops.aten.native_batch_norm.default(*options)  # type: ignore[no-any-return]
    mean, invstd = (torch.empty(x.shape[1] if training else 0, dtype=_statistics_type(x, weight)) for _ in range(2))
    torch.ops.aten.native_batch_norm.out(*options, out=into, save_mean=mean, save_invstd=invstd)
    return into, mean, invstd


def _statistics_type(x: Tensor, weight: Tensor | None) -> torch.dtype:
    """16-bit inputs with 32-bit weights have 32-bit statistics."""
    return x.dtype if weight is None else torch.promote_types(x.dtype, weight.dtype)


def _one(args: Sequence[Any], kwargs: Mapping[str, Any], values: Sequence[Value]) -> int:
    return 1


batch_norm = Split(func=split_batch_norm, most_chunks=_one, overwrites=(0,), exact=True, whole_takes_over=True)
