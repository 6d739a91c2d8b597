"""The calls that a program is made of: a graph's operators, the forms in which they are replayed, and the updates.

A *call* is what is profiled and executed; its signature (operator, shapes, strides, types, constants) decides what it
costs, so identical layers are profiled once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedhybrid.errors import CaptureError
from fedhybrid.graph import Op, Ref, Role, StepGraph, Value, map_refs
from fedhybrid.protocols import Optimizer

__all__ = ["FORMS", "Update", "replay_form", "signature", "updates_of"]

_BATCH_NORM = "aten.native_batch_norm.default"


@dataclass(frozen=True)
class Update:
    """The optimizer's update of one parameter, placed right after its gradient's last reader.

    `owned`: the gradient fills a storage that nothing else reads, so its memory may be used as scratch.
    """

    name: str
    param: int
    grad: int
    owned: bool


def signature(graph: StepGraph, op: Op) -> str:
    """Text that two calls share exactly when they cost the same."""
    return f"{op.target}{map_refs((op.args, op.kwargs), lambda value: _layout(graph.values[value]))!r}"


def _layout(value: Value) -> tuple[Any, ...]:
    return (value.shape, value.stride, str(value.dtype))


def normalise_again(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    mean: Tensor,
    invstd: Tensor,
    into: Tensor | None = None,
) -> Tensor:
    """Batch norm's output from saved statistics in one pass; running statistics stay untouched.

    `addcmul` fuses multiply and add as the kernel does, so the bits are those of `native_batch_norm` on builds with
    FMA in both; the planner verifies that before it uses this form (see `planner.profile`).

    Args:
        x: Shape (batch, channels, ...).
        weight: Shape (channels,) or None.
        bias: Shape (channels,) or None.
        mean: Saved by the forward pass, shape (channels,).
        invstd: Saved by the forward pass, shape (channels,).
        into: Memory that the result takes over, usually that of `x`.
    """
    scale = invstd if weight is None else invstd * weight
    shift = torch.addcmul(bias if bias is not None else torch.zeros_like(mean), mean, scale, value=-1)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    return torch.addcmul(shift.view(shape), x, scale.view(shape), out=into)


def normalise_from_scratch(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, statistics: torch.dtype
) -> Tensor:
    """Batch norm's output with its statistics computed once more: exact on every build, about three passes.

    `statistics` is the type that mean and deviation had in the forward pass. Without weights it is that of the running
    statistics, so that others of the same type, to be thrown away, stand in for those.
    """
    mean = variance = None
    if weight is None and statistics != x.dtype:
        mean, variance = torch.zeros(2, x.shape[1], dtype=statistics)
    return torch.native_batch_norm(x, weight, bias, mean, variance, True, 0.0, eps)[0]


# Functions of our own that stand for an operator when it is run again, by the target that their ops carry.
FORMS: dict[str, Callable[..., Tensor]] = {
    "fedhybrid.normalise_again": normalise_again,
    "fedhybrid.normalise_from_scratch": normalise_from_scratch,
}


def replay_form(graph: StepGraph, op: Op, *, exact_affine: bool) -> Op | None:
    """The op as it is run a second time, or None where it must not be.

    Never replayed: what random operators drew, what was written in place, and what reads such memory after a write
    (checked by the caller per storage). Batch norm in training is replayed without touching its running statistics.

    Args:
        graph: The rewritten graph.
        op: An op of the forward pass.
        exact_affine: Batch norm from saved statistics gives the kernel's bits on this machine.
    """
    if op.is_random or op.is_view or op.eager_inplace:
        return None
    if op.target == _BATCH_NORM and op.args[5]:
        x, weight, bias = op.args[:3]
        out, mean, invstd = op.outputs
        if mean is None or invstd is None:
            return None
        form: Callable[..., Tensor] = normalise_again if exact_affine else normalise_from_scratch
        from_scratch = {"eps": op.args[7], "statistics": graph.values[mean].dtype}
        statistics = {"mean": Ref(mean), "invstd": Ref(invstd)} if exact_affine else from_scratch
        return replace(
            op,
            func=form,
            target=f"fedhybrid.{form.__name__}",
            args=(x, weight, bias),
            kwargs=statistics,
            outputs=(out,),
            is_tuple=False,
            writes=(),
        )
    return None if op.writes else op


def updates_of(graph: StepGraph) -> list[Update]:
    """One update per trained parameter that has a gradient, in the model's order."""
    name_of = {value: name for name, value in graph.params.items()}
    readers: dict[int, int] = {}
    for grad in graph.grads.values():
        storage = graph.storage_of(grad)
        readers[storage] = readers.get(storage, 0) + 1
    found = []
    for param, grad in graph.grads.items():
        if graph.storages[graph.storage_of(grad)].role is Role.PARAM:
            reason = f"the gradient of {name_of[param]!r} is the memory of another parameter"
            raise CaptureError("the backward pass", reason, "Return a copy from that autograd function.")
        owner = graph.storages[graph.storage_of(grad)]
        owned = owner.role is Role.TEMP and readers[owner.index] == 1 and graph.covers_storage(grad)
        found.append(Update(name_of[param], param, grad, owned))
    return found


def update_signature(graph: StepGraph, update: Update, optimizer: Optimizer) -> str:
    """As `signature`, for an update."""
    param, grad = graph.values[update.param], graph.values[update.grad]
    rule = optimizer.rule_for(update.name, param.shape)
    return f"update {rule!r} {_layout(param)} {_layout(grad)} {update.owned}"
