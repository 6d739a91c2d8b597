"""The eager step's memory over time, from the captured graph: what PyTorch itself would hold, without running it."""

from __future__ import annotations

from fedhybrid.graph import Role, StepGraph
from fedhybrid.planner.calls import updates_of
from fedhybrid.planner.costs import CostTable
from fedhybrid.protocols import Optimizer

__all__ = ["eager_timeline"]


def eager_timeline(
    raw: StepGraph, costs: CostTable, optimizer: Optimizer, *, norm_bytes: int = 0, micro_batches: int = 1
) -> list[int]:
    """Bytes above the resident ones at each op of an eager step: forward, backward, then torch.optim.

    A storage is born at its producer and dies after the last use of any of its aliases, or later where the captured
    step still referred to it (`StepGraph.held`); gradients live until the end
    (they are set to None before the next step); sums of gradients are accumulated in place, as autograd does, and a
    gradient that autograd may not keep as it is (strides other than the parameter's, or still read) is copied.
    The optimizer's for-loop implementation holds `eager_scratch_tensors` temporaries of one parameter at a time, and
    `eager_left_tensors` of the parameter before.

    Args:
        raw: The graph as captured.
        costs: Of its calls.
        optimizer: Whose temporaries count.
        norm_bytes: Scratch of clipping by the norm of all gradients, before the updates.
        micro_batches: How often `raw` runs before the updates: the timeline then holds the first and the last run.
    """
    tops, live = _forward_and_backward(raw, costs, first=True)
    if micro_batches > 1:
        # Sums of gradients, the loss and all auxiliary outputs so far stay; new gradients die in the sums.
        aux_bytes = 0 if raw.aux is None else raw.storages[raw.storage_of(raw.aux)].nbytes
        joined_bytes = 0 if raw.aux is None else micro_batches * raw.values[raw.aux].nbytes
        held = live + (micro_batches - 2) * aux_bytes
        later, _ = _forward_and_backward(raw, costs, first=False)
        tops += [held + top for top in later]
        tops.append(held + aux_bytes + joined_bytes)
        live += joined_bytes - aux_bytes
    if norm_bytes:
        tops.append(live + norm_bytes)
    left_bytes = 0
    for update in updates_of(raw):
        param = raw.values[update.param]
        rule = optimizer.rule_for(update.name, param.shape)
        tops.append(live + left_bytes + rule.eager_scratch_tensors * param.nbytes)
        left_bytes = rule.eager_left_tensors * param.nbytes
    return tops


def _forward_and_backward(raw: StepGraph, costs: CostTable, *, first: bool) -> tuple[list[int], int]:
    """Bytes at each op, and after the last one; only the first run's gradients stay, later ones are added to them."""
    last: dict[int, int] = {}
    for position, op in enumerate(raw.ops):
        for value in (*op.inputs, *(v for v in op.outputs if v is not None)):
            last[raw.storage_of(value)] = position
    end = len(raw.ops)
    gradients = {raw.storage_of(grad) for grad in raw.grads.values()}
    last.update({s: max(last[s], at) for s, at in raw.held.items() if s in last and s not in gradients})
    if raw.backward_at < end:  # backward() itself holds the gradient of the loss (its first op) until it returns.
        last[raw.storage_of(_first_output(raw))] = end - 1
    copied = _copied_gradients(raw, last)
    stolen = [grad for param, grad in raw.grads.items() if param not in copied] if first else []
    copied = copied if first else {}
    kept = (raw.loss, *([] if raw.aux is None else [raw.aux]), *stolen)
    last.update({raw.storage_of(value): end for value in kept})
    dying: dict[int, list[int]] = {}
    for storage, position in last.items():
        if raw.storages[storage].role is Role.TEMP:
            dying.setdefault(position, []).append(storage)
    live, tops = 0, []
    born: set[int] = set()
    views = _autograd_views(raw)
    for position, op in enumerate(raw.ops):
        fresh = {raw.storage_of(v) for v in op.outputs if v is not None} - born
        fresh = {s for s in fresh if raw.storages[s].role is Role.TEMP}
        fresh_bytes = sum(raw.storages[s].nbytes for s in fresh)
        born |= fresh
        workspace = 0 if op.is_view else costs.of_op(raw, op).workspace_bytes
        sums = position >= raw.backward_at and op.target == "aten.add.Tensor" and op.inputs[0] not in views
        takes_over = sums and _first_dies(raw, position, last)
        reached = live + (0 if takes_over else fresh_bytes)
        live += fresh_bytes - sum(raw.storages[s].nbytes for s in dying.get(position, ()))
        tops.append(reached + workspace)
        here = [param for param, at in copied.items() if at == position]
        if here:  # gradients are copied when the op has given back what it read; only their sources still live
            sources = {raw.storage_of(raw.grads[param]) for param in here}.intersection(dying.get(position, ()))
            live += sum(raw.values[param].nbytes for param in here)
            tops[-1] = max(tops[-1], live + sum(raw.storages[s].nbytes for s in sources))
    return tops, live


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


def _autograd_views(raw: StepGraph) -> set[int]:
    """Values that autograd knows as views: each refers to its base, so their sum gets memory of its own.

    Its own reshape of a matrix product is none (`_unsafe_view`).
    """
    found: set[int] = set()
    for op in raw.ops:
        if op.is_view and (op.target != "aten._unsafe_view.default" or found.intersection(op.inputs)):
            found.update(v for v in op.outputs if v is not None)
    return found


def _first_dies(raw: StepGraph, position: int, last: dict[int, int]) -> bool:
    first = raw.ops[position].inputs[0]
    storage = raw.storages[raw.storage_of(first)]
    return storage.role is Role.TEMP and last[storage.index] == position and raw.covers_storage(first)
