"""Measures what each distinct call of a step costs: workspace bytes always, seconds when this machine's count.

Calls run one at a time on scratch tensors, so that a device never needs more memory to plan than its largest
operator needs to run, and the unplanned step is never executed. The generator's state is put back afterwards.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fedhybrid.errors import CaptureError
from fedhybrid.graph import Op, StepGraph, Value, allocator_events, map_refs, peak_of
from fedhybrid.planner.calls import (
    Update,
    normalise_again,
    replay_form,
    signature,
    update_signature,
)
from fedhybrid.planner.costs import CallCost, CostTable, work_of_update
from fedhybrid.planner.work import op_work
from fedhybrid.protocols import Optimizer

__all__ = ["profile_step"]

_MARKER_BYTES = 7919  # a size that no operator allocates, to cut the stream of allocator events at calls
_TIMED_RUNS = 3

Call = Callable[[], Any]
Fill = Callable[[Tensor], None]
MakeCall = Callable[[Fill], Call]


def profile_step(
    raw: StepGraph, graph: StepGraph, updates: list[Update], optimizer: Optimizer, *, timed: bool
) -> CostTable:
    """Profiles every distinct call of a step.

    Args:
        raw: The graph as captured: what eager PyTorch runs.
        graph: The graph after rewrites: what programs are made of.
        updates: The optimizer's updates, in `graph`.
        optimizer: Applies them.
        timed: Measure seconds too; else they are 0 until `CostTable.priced`.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        exact = _affine_replay_is_exact(graph)
        makers: dict[str, MakeCall] = {}
        births: dict[str, int] = {}
        works = {}
        for owner, op in _distinct_ops(raw, graph, exact):
            key = signature(owner, op)
            if key not in makers:
                makers[key] = _op_maker(owner, op)
                births[key] = _birth_bytes(owner, op)
                works[key] = op_work(owner, op)
        for update in updates:
            key = update_signature(graph, update, optimizer)
            if key not in makers:
                makers[key] = _update_maker(graph, update, optimizer)
                births[key] = 0
                works[key] = work_of_update(graph, update, optimizer)
        fills = {key: _accepted_fill(key, make) for key, make in makers.items()}
        held_bytes = _measure_bytes(makers, fills, births)
        seconds = {key: _measure_seconds(make(fills[key])) if timed else 0.0 for key, make in makers.items()}
    return CostTable(
        calls={key: CallCost(seconds[key], *held_bytes[key]) for key in makers}, works=works, exact_affine=exact
    )


def _distinct_ops(raw: StepGraph, graph: StepGraph, exact_affine: bool) -> Iterable[tuple[StepGraph, Op]]:
    for owner in (graph, raw):
        for op in owner.ops:
            if not op.is_view:
                yield owner, op
    for op in graph.ops[: graph.backward_at]:
        form = replay_form(graph, op, exact_affine=exact_affine)
        if form is not None and form is not op:
            yield graph, form


def _birth_bytes(graph: StepGraph, op: Op) -> int:
    """Bytes of the storages that a call leaves behind; none where it wrote in place."""
    if op.eager_inplace and op.writes:
        return 0
    return sum(graph.storages[graph.storage_of(v)].nbytes for v in op.outputs if v is not None)


def _normal(flat: Tensor) -> None:
    flat.normal_()


def _uniform(flat: Tensor) -> None:
    flat.uniform_()


def _ones(flat: Tensor) -> None:
    flat.fill_(1)


# Tried in this order until the operator accepts its arguments (probabilities must lie in [0, 1], for example).
_FILLS: tuple[Fill, ...] = (_normal, _uniform, _ones)


def scratch(value: Value, fill: Fill = _normal) -> Tensor:
    """A tensor of the value's shape, strides and type, filled with ordinary numbers (integers: zeros)."""
    extent = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride, strict=True)) if value.numel else 0
    flat = torch.zeros(extent, dtype=value.dtype)
    if value.dtype.is_floating_point:
        fill(flat)
    return flat.as_strided(value.shape, value.stride)


def _op_maker(graph: StepGraph, op: Op) -> MakeCall:
    def make(fill: Fill) -> Call:
        tensors = {v: scratch(graph.values[v], fill) for v in op.inputs}
        args, kwargs = map_refs((op.args, op.kwargs), tensors.__getitem__)
        return lambda: op.func(*args, **kwargs)

    return make


def _update_maker(graph: StepGraph, update: Update, optimizer: Optimizer) -> MakeCall:
    def make(fill: Fill) -> Call:
        param, grad = scratch(graph.values[update.param], fill), scratch(graph.values[update.grad], fill)
        state = optimizer.init_state(param)
        for tensor in state.values():
            tensor.fill_(0.1)

        def call() -> None:
            optimizer.update(update.name, param, grad, state, step=2, lr=optimizer.lr, owned=update.owned)

        return call

    return make


def _accepted_fill(key: str, make: MakeCall) -> Fill:
    """The first fill that the call accepts.

    The first run of a call also allocates one-off things (compiled kernels, caches) that are no workspace.
    """
    for fill in _FILLS:
        try:
            make(fill)()
            return fill
        except RuntimeError as error:
            reason = f"it does not run on its own on scratch tensors: {str(error).splitlines()[0]}"
    raise CaptureError(key.split("(", maxsplit=1)[0], reason, "Please report the operator; it needs a rule of its own.")


def _measure_bytes(
    makers: dict[str, MakeCall], fills: dict[str, Fill], births: dict[str, int]
) -> dict[str, tuple[int, int]]:
    """Workspace and hidden bytes of each call (see `CallCost`)."""
    gc.collect()
    with allocator_events() as events:
        for key, make in makers.items():
            call = make(fills[key])
            torch.empty(_MARKER_BYTES, dtype=torch.uint8)
            kept = call()
            torch.empty(_MARKER_BYTES, dtype=torch.uint8)
            del kept, call
    pieces = list(_between_markers(events))
    assert len(pieces) == len(makers), "the allocator's events could not be cut at the markers"
    found = {}
    for key, piece in zip(makers, pieces, strict=True):
        hidden_bytes = max(0, sum(piece) - births[key])
        found[key] = max(0, peak_of(piece) - births[key] - hidden_bytes), hidden_bytes
    return found


def _between_markers(events: list[int]) -> Iterable[list[int]]:
    """The events of each call: what lies between an odd marker and the next."""
    inside: list[int] | None = None
    for nbytes in events:
        if nbytes == _MARKER_BYTES:
            if inside is None:
                inside = []
            else:
                yield inside
                inside = None
        elif nbytes != -_MARKER_BYTES and inside is not None:
            inside.append(nbytes)


def _measure_seconds(call: Call) -> float:
    call()
    best = float("inf")
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def _affine_replay_is_exact(graph: StepGraph) -> bool:
    """Whether batch norm from saved statistics gives the kernel's bits for every batch norm of the step."""
    checked: set[str] = set()
    for op in graph.ops[: graph.backward_at]:
        form = replay_form(graph, op, exact_affine=True)
        if form is None or form.func is not normalise_again or signature(graph, op) in checked:
            continue
        checked.add(signature(graph, op))
        tensors = {v: scratch(graph.values[v]) for v in (*op.inputs, *form.inputs)}
        args = map_refs(op.args, tensors.__getitem__)
        expected, mean, invstd = op.func(*args)
        again = normalise_again(*args[:3], mean=mean, invstd=invstd)
        if again.stride() != expected.stride() or not torch.equal(again, expected):
            return False
    return True
