"""The planning problem: a step in plain integers, at the level of storages.

Views vanish (they cost nothing), parameters and other resident storages are one constant, and every op becomes the
storages that it reads and gives birth to, its seconds and its workspace. Solvers see nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedhybrid.graph import Op, Ref, Role, StepGraph
from fedhybrid.planner.calls import Update, replay_form, updates_of
from fedhybrid.planner.costs import CallCost, CostTable
from fedhybrid.protocols import Optimizer

__all__ = ["PlanOp", "PlanUpdate", "Problem", "make_problem"]

# Functional operators with a form that overwrites one argument: the form's name, the arguments it may overwrite, and
# the keyword that receives the output (None: the method form, first argument). All are element-wise, same bits.
IN_PLACE_FORMS: dict[str, tuple[str, tuple[int, ...], str | None]] = {
    "aten.relu.default": ("aten.relu_.default", (0,), None),
    "aten.hardtanh.default": ("aten.hardtanh_.default", (0,), None),
    "aten.leaky_relu.default": ("aten.leaky_relu_.default", (0,), None),
    "aten.silu.default": ("aten.silu_.default", (0,), None),
    "aten.gelu.default": ("aten.gelu_.default", (0,), None),
    "aten.sigmoid.default": ("aten.sigmoid_.default", (0,), None),
    "aten.tanh.default": ("aten.tanh_.default", (0,), None),
    "aten.add.Tensor": ("aten.add_.Tensor", (0, 1), None),
    "aten.sub.Tensor": ("aten.sub_.Tensor", (0,), None),
    "aten.mul.Tensor": ("aten.mul_.Tensor", (0, 1), None),
    "aten.div.Tensor": ("aten.div_.Tensor", (0,), None),
    "aten.mul.Scalar": ("aten.mul_.Scalar", (0,), None),
    "aten.div.Scalar": ("aten.div_.Scalar", (0,), None),
    "aten.threshold_backward.default": ("aten.threshold_backward.grad_input", (0,), "grad_input"),
    "aten.hardtanh_backward.default": ("aten.hardtanh_backward.grad_input", (0,), "grad_input"),
    "aten.leaky_relu_backward.default": ("aten.leaky_relu_backward.grad_input", (0,), "grad_input"),
    "aten.gelu_backward.default": ("aten.gelu_backward.grad_input", (0,), "grad_input"),
    "aten.silu_backward.default": ("aten.silu_backward.grad_input", (0,), "grad_input"),
    "aten.sigmoid_backward.default": ("aten.sigmoid_backward.grad_input", (0,), "grad_input"),
    "aten.tanh_backward.default": ("aten.tanh_backward.grad_input", (0,), "grad_input"),
}


# A storage smaller than this share of all droppable bytes is always kept.
_NEGLIGIBLE_RATIO = 1e-4


@dataclass(frozen=True, slots=True)
class PlanOp:
    """An op as the planner sees it.

    Attributes:
        op: Index in the graph's ops.
        reads: Temporary storages read.
        params: Trained parameters' storages read (their updates must wait).
        births: Storages that it creates.
        in_place: Storages that its only birth may take over when this op is their last reader.
        seconds, workspace_bytes: Its cost.
    """

    op: int
    reads: tuple[int, ...]
    params: tuple[int, ...]
    births: tuple[int, ...]
    in_place: tuple[int, ...]
    seconds: float
    workspace_bytes: int


@dataclass(frozen=True, slots=True)
class PlanUpdate:
    """An optimizer update: `param` and `grad` are storages; `grad` is -1 where the gradient is resident."""

    index: int
    param: int
    grad: int
    seconds: float
    workspace_bytes: int


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A step as the planner sees it.

    Attributes:
        nbytes: Bytes of each storage.
        ops: Compute ops in order; those from `backward_at` on are the backward pass.
        replays: For each storage that may be dropped and made again: the op that makes it.
        candidates: Storages born in the forward and read in the backward pass that have a replay, largest first.
        intermediates: Storages of the forward pass with a replay that the backward pass does not read: gone after the
            forward pass unless a plan keeps them.
        uses: For each storage, the positions in `ops` of its backward readers, ascending.
        updates: The optimizer's updates.
        outputs: Storages that must outlive the step (loss, auxiliary output).
        resident_bytes: Everything that lives before and after the step, optimizer state included (R).
        eager_peak_bytes: Peak of PyTorch eager with torch.optim above the resident bytes (A).
        eager_timeline: Bytes above the resident ones at each op of the eager step; its backward starts at
            `eager_backward_at`.
        seconds: Of the step with nothing replayed.
        hold_gradients: Every update waits for the end of the backward pass (the norm of all gradients is needed first).
        held_bytes: Bytes beyond the resident ones that are alive during the whole step (sums of gradients over
            micro-batches).
    """

    graph: StepGraph
    costs: CostTable
    nbytes: list[int]
    ops: list[PlanOp]
    backward_at: int
    replays: dict[int, PlanOp]
    candidates: list[int]
    intermediates: list[int]
    uses: dict[int, list[int]]
    updates: list[PlanUpdate]
    outputs: tuple[int, ...]
    resident_bytes: int
    eager_peak_bytes: int
    eager_timeline: list[int]
    eager_backward_at: int
    seconds: float
    hold_gradients: bool = False
    held_bytes: int = 0


def make_problem(
    graph: StepGraph,
    costs: CostTable,
    optimizer: Optimizer,
    *,
    eager_timeline: list[int],
    eager_backward_at: int,
    hold_gradients: bool = False,
    held_bytes: int = 0,
) -> Problem:
    """Translates a rewritten graph and its costs.

    Args:
        graph: After `graph.rewrite`.
        costs: Of every call of it.
        optimizer: Decides the state that is resident.
        eager_timeline: From `liveness.eager_timeline`, resident bytes excluded.
        eager_backward_at: Where its backward pass starts.
        hold_gradients, held_bytes: See `Problem`.
    """
    trained = {graph.storage_of(p) for p in graph.grads}
    ops: list[PlanOp] = []
    backward_at = 0
    producer: dict[int, int] = {}
    for index, op in enumerate(graph.ops):
        if index == graph.backward_at:
            backward_at = len(ops)
        if not op.is_view:
            ops.append(_plan_op(graph, index, op, costs.of_op(graph, op), trained))
            for storage in ops[-1].births:
                producer[storage] = index
    outputs = {graph.storage_of(graph.loss), *([] if graph.aux is None else [graph.storage_of(graph.aux)])}
    held = outputs | {graph.storage_of(grad) for grad in graph.grads.values()}
    replays = {s: r for s, r in _replays(graph, costs, producer, trained).items() if s not in held}
    uses: dict[int, list[int]] = {}
    for position in range(backward_at, len(ops)):
        for storage in ops[position].reads:
            uses.setdefault(storage, []).append(position)
    plan_updates = [
        _plan_update(graph, i, u, costs.of_update(graph, u, optimizer)) for i, u in enumerate(updates_of(graph))
    ]
    state_bytes = optimizer_state_bytes(graph, optimizer)
    candidates = [s for s in replays if s in uses]
    # Saved statistics and the like: dropping them frees next to nothing, and each would be one more decision.
    least = sum(graph.storages[s].nbytes for s in candidates) * _NEGLIGIBLE_RATIO
    candidates = [s for s in candidates if graph.storages[s].nbytes >= least]
    return Problem(
        graph=graph,
        costs=costs,
        nbytes=[s.nbytes for s in graph.storages],
        ops=ops,
        backward_at=backward_at,
        replays=replays,
        candidates=sorted(candidates, key=lambda s: (-graph.storages[s].nbytes, s)),
        intermediates=[s for s in replays if s not in uses],
        uses=uses,
        updates=plan_updates,
        outputs=tuple(sorted(s for s in outputs if graph.storages[s].role is Role.TEMP)),
        resident_bytes=graph.resident_bytes + state_bytes,
        eager_peak_bytes=max(eager_timeline),
        eager_timeline=eager_timeline,
        eager_backward_at=eager_backward_at,
        seconds=sum(op.seconds for op in ops) + sum(u.seconds for u in plan_updates),
        hold_gradients=hold_gradients,
        held_bytes=held_bytes,
    )


def optimizer_state_bytes(graph: StepGraph, optimizer: Optimizer) -> int:
    """Bytes of the optimizer's state tensors for all trained parameters."""
    return len(optimizer.state_names) * sum(graph.values[p].nbytes for p in graph.grads)


def _temp_storages(graph: StepGraph, values: tuple[int, ...]) -> tuple[int, ...]:
    storages = dict.fromkeys(graph.storage_of(v) for v in values)
    return tuple(s for s in storages if graph.storages[s].role is Role.TEMP)


def _plan_op(graph: StepGraph, index: int, op: Op, cost: CallCost, trained: set[int]) -> PlanOp:
    reads = _temp_storages(graph, op.inputs)
    outputs = tuple(v for v in op.outputs if v is not None)
    births = tuple(s for s in _temp_storages(graph, outputs) if s not in reads)
    return PlanOp(
        op=index,
        reads=reads,
        params=tuple(sorted({graph.storage_of(v) for v in op.inputs} & trained)),
        births=births,
        in_place=tuple(s for _, s in in_place_arguments(graph, op)),
        seconds=cost.seconds,
        workspace_bytes=cost.workspace_bytes,
    )


def in_place_arguments(graph: StepGraph, op: Op) -> list[tuple[int, int]]:
    """Arguments that the op may overwrite if it is their last reader: (position, storage)."""
    form = IN_PLACE_FORMS.get(op.target)
    if form is None or op.writes or op.outputs[0] is None:
        return []
    out = graph.values[op.outputs[0]]
    found = []
    for position in form[1]:
        ref = op.args[position] if position < len(op.args) else None
        if not isinstance(ref, Ref) or (position == 1 and op.kwargs.get("alpha", 1) != 1):
            continue
        value = graph.values[ref.value]
        others = (v for v in op.inputs if v != ref.value)
        if any(graph.storage_of(v) == value.storage for v in others):
            continue  # another argument views the same memory: it would be read after it is overwritten
        same = (value.shape, value.stride, value.dtype) == (out.shape, out.stride, out.dtype)
        if same and graph.covers_storage(ref.value) and graph.storages[value.storage].role is Role.TEMP:
            found.append((position, value.storage))
    return found


def _plan_update(graph: StepGraph, index: int, update: Update, cost: CallCost) -> PlanUpdate:
    grad = graph.storage_of(update.grad)
    return PlanUpdate(
        index=index,
        param=graph.storage_of(update.param),
        grad=grad if graph.storages[grad].role is Role.TEMP else -1,
        seconds=cost.seconds,
        workspace_bytes=cost.workspace_bytes,
    )


def _replays(graph: StepGraph, costs: CostTable, producer: dict[int, int], trained: set[int]) -> dict[int, PlanOp]:
    """Forward storages that can be made again: not random, not written after birth, from inputs that are not either."""
    written = {graph.storage_of(w) for op in graph.ops for w in op.writes}
    found: dict[int, PlanOp] = {}
    for storage, index in producer.items():
        op = graph.ops[index]
        if index >= graph.backward_at or storage in written:
            continue
        form = replay_form(graph, op, exact_affine=costs.exact_affine)
        if form is None or any(graph.storage_of(v) in written and not _settled(graph, v, index) for v in form.inputs):
            continue
        if storage not in _temp_storages(graph, tuple(v for v in form.outputs if v is not None)):
            continue
        found[storage] = _plan_op(graph, index, form, costs.of_op(graph, form), trained)
    return found


def _settled(graph: StepGraph, value: int, index: int) -> bool:
    """Whether the value's storage is never written after the op at `index` has read it."""
    storage = graph.storage_of(value)
    return all(
        position < index for position, op in enumerate(graph.ops) for w in op.writes if graph.storage_of(w) == storage
    )
