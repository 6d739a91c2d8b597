"""Clipping by the norm of all gradients together, with the bits of `torch.nn.utils.clip_grad_norm_`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedhybrid.graph import StepGraph, Value, allocator_events, peak_of
from fedhybrid.planner import Update
from fedhybrid.planner.scratch import scratch

__all__ = ["check_clip_norm", "clip_coefficient", "norm_scratch"]

_EPS = 1e-6  # as in clip_grad_norm_


def check_clip_norm(clip_norm: float | None) -> list[str]:
    """What is wrong with the option, in words."""
    good = clip_norm is None or (isinstance(clip_norm, (int, float)) and 0 < clip_norm < math.inf)
    return [] if good else [f"clip_norm must be a positive finite number or None, got {clip_norm!r}"]


def clip_coefficient(gradients: Sequence[Tensor], params: Sequence[Tensor], clip_norm: float) -> float:
    """What every gradient must be multiplied by, at most 1.

    A gradient whose strides are not the parameter's is copied first, as autograd does when it keeps one: a norm in
    another order of memory would differ in its last bits.

    Args:
        gradients: All that the step made, in the model's order.
        params: Their parameters.
        clip_norm: Largest L2 norm that is left as it is.
    """
    kept = [_as_autograd_keeps(grad, param) for grad, param in zip(gradients, params, strict=True)]
    total = torch.nn.utils.get_total_norm(kept)
    return float(torch.clamp(clip_norm / (total + _EPS), max=1.0))


def _as_autograd_keeps(grad: Tensor, param: Tensor) -> Tensor:
    """The gradient in the memory layout of `param.grad`: itself where it has it, else a copy."""
    strides = zip(grad.shape, grad.stride(), param.stride(), strict=True)
    if all(mine == wanted for extent, mine, wanted in strides if extent != 1):
        return grad
    return torch.empty_like(param).copy_(grad)


def norm_scratch(graph: StepGraph, updates: Sequence[Update], micro_batches: int) -> tuple[int, int]:
    """Scratch bytes of clipping in the program and in eager PyTorch, where gradients lie as their parameters do.

    Measured on scratch tensors as large as all gradients, which live together when a step is clipped anyway.
    """
    values = [(graph.values[u.grad], graph.values[u.param]) for u in updates]
    eager_bytes = _norm_bytes([(param, param) for _, param in values])
    if micro_batches > 1 or all(grad.stride == param.stride for grad, param in values):
        return eager_bytes, eager_bytes
    return _norm_bytes(values), eager_bytes


def _norm_bytes(values: Sequence[tuple[Value, Value]]) -> int:
    """Most bytes that `clip_coefficient` allocates at once, for pairs of gradient and parameter."""
    gradients = [scratch(grad, None) for grad, _ in values]
    params = [scratch(param, None) for _, param in values]
    clip_coefficient(gradients[:1], params[:1], 1.0)  # what the first call sets up once is no scratch
    with allocator_events() as events:
        clip_coefficient(gradients, params, 1.0)
    return peak_of(events)
