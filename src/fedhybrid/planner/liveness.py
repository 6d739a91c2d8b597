"""The eager step's memory over time, from the captured graph: what PyTorch itself would hold, without running it."""

from __future__ import annotations

from fedhybrid.graph import Role, StepGraph
from fedhybrid.planner.calls import updates_of
from fedhybrid.planner.costs import CostTable
from fedhybrid.protocols import Optimizer

__all__ = ["eager_timeline"]


def eager_timeline(raw: StepGraph, costs: CostTable, optimizer: Optimizer) -> list[int]:
    """Bytes above the resident ones at each op of an eager step: forward, backward, then torch.optim.

    A storage is born at its producer and dies after the last use of any of its aliases, or later where the captured
    step still referred to it (`StepGraph.held`); gradients live until the end
    (they are set to None before the next step); sums of gradients are accumulated in place, as autograd does, and a
    gradient that autograd may not keep as it is (strides other than the parameter's, or still read) is copied.
    The optimizer's for-loop implementation holds `eager_scratch_tensors` temporaries of one parameter at a time.
    """
    last: dict[int, int] = {}
    for position, op in enumerate(raw.ops):
        for value in (*op.inputs, *(v for v in op.outputs if v is not None)):
            last[raw.storage_of(value)] = position
    end = len(raw.ops)
    gradients = {raw.storage_of(grad) for grad in raw.grads.values()}
    last.update({s: max(last[s], at) for s, at in raw.held.items() if s in last and s not in gradients})
    # backward() itself holds the gradient of the loss (its first op) until it returns.
    last[raw.storage_of(_first_output(raw))] = end - 1
    copied = _copied_gradients(raw, last)
    stolen = [grad for param, grad in raw.grads.items() if param not in copied]
    kept = (raw.loss, *([] if raw.aux is None else [raw.aux]), *stolen)
    last.update({raw.storage_of(value): end for value in kept})
    dying: dict[int, list[int]] = {}
    for storage, position in last.items():
        if raw.storages[storage].role is Role.TEMP:
            dying.setdefault(position, []).append(storage)
    live, tops = 0, []
    born: set[int] = set()
    for position, op in enumerate(raw.ops):
        fresh = {raw.storage_of(v) for v in op.outputs if v is not None} - born
        fresh = {s for s in fresh if raw.storages[s].role is Role.TEMP}
        fresh_bytes = sum(raw.storages[s].nbytes for s in fresh)
        born |= fresh
        workspace = 0 if op.is_view else costs.of_op(raw, op).workspace_bytes
        takes_over = position >= raw.backward_at and op.target == "aten.add.Tensor" and _first_dies(raw, position, last)
        tops.append(live + (0 if takes_over else fresh_bytes) + workspace)
        copies_bytes = sum(raw.values[param].nbytes for param, at in copied.items() if at == position)
        tops[-1] = max(tops[-1], live + fresh_bytes + copies_bytes)
        live += fresh_bytes + copies_bytes - sum(raw.storages[s].nbytes for s in dying.get(position, ()))
    for update in updates_of(raw):
        tops.append(live + optimizer.eager_scratch_tensors * raw.values[update.param].nbytes)
    return tops


def _copied_gradients(raw: StepGraph, last: dict[int, int]) -> dict[int, int]:
    """Parameters whose gradient AccumulateGrad copies, and the position at which it does.

    It takes the tensor itself only if nothing else refers to it and its strides are those of the parameter
    (torch/csrc/autograd/functions/accumulate_grad.h, "gradient layout contract").
    """
    made = {v: position for position, op in enumerate(raw.ops) for v in op.outputs if v is not None}
    readers: dict[int, int] = {}
    for position, op in enumerate(raw.ops):
        for value in op.inputs:
            readers[value] = position
    owners = list(raw.grads.values())
    copied: dict[int, int] = {}
    for order, (param, grad) in enumerate(raw.grads.items()):
        ready = made.get(grad, raw.backward_at)
        p, g = raw.values[param], raw.values[grad]
        fits = all(a == b for n, a, b in zip(p.shape, p.stride, g.stride, strict=True) if n != 1)
        resident = raw.storages[g.storage].role is not Role.TEMP
        if not fits or resident or readers.get(grad, -1) > ready or grad in owners[order + 1 :]:
            copied[param] = ready
            last[g.storage] = max(last.get(g.storage, ready), ready)
    return copied


def _first_output(raw: StepGraph) -> int:
    output = raw.ops[raw.backward_at].outputs[0]
    assert output is not None
    return output


def _first_dies(raw: StepGraph, position: int, last: dict[int, int]) -> bool:
    first = raw.ops[position].inputs[0]
    storage = raw.storages[raw.storage_of(first)]
    return storage.role is Role.TEMP and last[storage.index] == position and raw.covers_storage(first)
