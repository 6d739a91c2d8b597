"""Batch norm in the memory of its input, and its backward pass channel by channel: both exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from fedhybrid.graph import Value
from fedhybrid.planner.splits.base import Split

__all__ = ["batch_norm"]


def split_batch_norm(  # noqa: PLR0917 - the arguments of the operator
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
        weight: Shape (channels,) or None, as the next three.
        bias: See `weight`.
        running_mean: Changed in training.
        running_var: Changed in training.
        training: Whether the batch's own statistics are used.
        momentum: Weight of the batch in the running statistics.
        eps: Added to the variance.
        chunks: Ignored.
        into: Memory laid out as the output, usually the input itself.

    Returns:
        Output, saved mean, saved 1 / standard deviation, as the operator (the last two are empty outside training).
    """
    options = (x, weight, bias, running_mean, running_var, training, momentum, eps)
    if into is None:
        return torch.ops.aten.native_batch_norm.default(*options)  # type: ignore[no-any-return]
    channels = x.shape[1] if training else 0
    dtype = _statistics_type(x, weight, bias, running_mean, running_var)
    mean, invstd = torch.empty(channels, dtype=dtype), torch.empty(channels, dtype=dtype)
    torch.ops.aten.native_batch_norm.out(*options, out=into, save_mean=mean, save_invstd=invstd)
    return into, mean, invstd


def _statistics_type(x: Tensor, *of_channels: Tensor | None) -> torch.dtype:
    """16-bit inputs have 32-bit statistics where anything else of a channel is in 32 bits."""
    return reduce(torch.promote_types, (t.dtype for t in of_channels if t is not None), x.dtype)


def _one(args: Sequence[Any], kwargs: Mapping[str, Any], values: Sequence[Value]) -> int:
    return 1


batch_norm = Split(func=split_batch_norm, most_chunks=_one, overwrites=(0,), exact=True, whole_takes_over=True)
