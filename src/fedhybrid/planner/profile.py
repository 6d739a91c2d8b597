"""Measures what each distinct call of a step costs: workspace bytes always, seconds when this machine's count.

Calls run one at a time on scratch tensors, so that a device never needs more memory to plan than its largest
operator needs to run, and the unplanned step is never executed. The generator's state is put back afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch

from fedhybrid.errors import CaptureError
from fedhybrid.graph import Op, StepGraph, answering, map_refs
from fedhybrid.opwork import WAITING
from fedhybrid.planner.calls import (
    Update,
    normalise_again,
    replay_form,
    signature,
    update_signature,
)
from fedhybrid.planner.costs import CallCost, CostTable, work_of_update
from fedhybrid.planner.scratch import (
    FILLS,
    Call,
    Fill,
    birth_bytes,
    measure_bytes,
    measure_seconds,
    scratch,
    scratch_arguments,
)
from fedhybrid.planner.split_costs import profile_splits
from fedhybrid.planner.work import op_work
from fedhybrid.protocols import Optimizer

__all__ = ["profile_step"]

MakeCall = Callable[[Fill], Call]


def profile_step(
    raw: StepGraph,
    graph: StepGraph,
    updates: list[Update],
    optimizer: Optimizer,
    *,
    timed: bool,
    known: CostTable | None = None,
) -> CostTable:
    """Profiles every distinct call of a step.

    Args:
        raw: The graph as captured: what eager PyTorch runs.
        graph: The graph after rewrites: what programs are made of.
        updates: The optimizer's updates, in `graph`.
        optimizer: Applies them.
        timed: Measure seconds too; else they are 0 until `CostTable.priced`.
        known: Costs from another batch shape of the same model on this machine; what they hold is not run again.
    """
    done = known.calls if known is not None else {}
    with torch.random.fork_rng(devices=[]), torch.no_grad(), answering(None):
        torch.manual_seed(0)
        exact = _affine_replay_is_exact(graph)
        makers: dict[str, MakeCall] = {}
        births: dict[str, int] = {}
        works = {}
        for owner, op in _distinct_ops(raw, graph, exact):
            key = signature(owner, op)
            if key not in makers and key not in done:
                makers[key] = _op_maker(owner, op)
                births[key] = birth_bytes(owner, op)
                works[key] = op_work(owner, op)
        for update in updates:
            key = update_signature(graph, update, optimizer)
            if key not in makers and key not in done:
                makers[key] = _update_maker(graph, update, optimizer)
                births[key] = 0
                works[key] = work_of_update(graph, update, optimizer)
        fills = {key: _accepted_fill(key, make) for key, make in makers.items()}
        measured = measure_bytes([(partial(make, fills[key]), births[key]) for key, make in makers.items()])
        calls = dict(done)
        for (key, make), held_bytes in zip(makers.items(), measured, strict=True):
            seconds = measure_seconds(make(fills[key])) if timed and works[key].kind != WAITING else 0.0
            calls[key] = CallCost(seconds, *held_bytes)
        own = [(owner, op) for owner, op in _distinct_ops(raw, graph, exact) if owner is graph]
        splits = profile_splits(own, calls, fills, timed=timed)
    if known is not None:
        works, splits = {**known.works, **works}, {**known.splits, **splits}
    return CostTable(calls=calls, works=works, splits=splits, exact_affine=exact)


def _distinct_ops(raw: StepGraph, graph: StepGraph, exact_affine: bool) -> Iterable[tuple[StepGraph, Op]]:
    for owner in (graph, raw):
        for op in owner.ops:
            if not op.is_view:
                yield owner, op
    for op in graph.ops[: graph.backward_at]:
        form = replay_form(graph, op, exact_affine=exact_affine)
        if form is not None and form is not op:
            yield graph, form


def _op_maker(graph: StepGraph, op: Op) -> MakeCall:
    def make(fill: Fill) -> Call:
        args, kwargs = scratch_arguments(graph, op, fill)
        if None not in op.outputs:
            return lambda: op.func(*args, **kwargs)

        def wanted() -> list[object]:
            """Without what the operator makes although it was told that nobody wants it (a convolution does)."""
            results = op.func(*args, **kwargs)
            return [result for result, value in zip(results, op.outputs, strict=False) if value is not None]

        return wanted

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
    for fill in FILLS:
        try:
            make(fill)()
            return fill
        except RuntimeError as error:
            reason = f"it does not run on its own on scratch tensors: {str(error).splitlines()[0]}"
    raise CaptureError(key.split("(", maxsplit=1)[0], reason, "Please report the operator; it needs a rule of its own.")


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
