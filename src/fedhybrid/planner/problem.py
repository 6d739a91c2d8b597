"""The planning problem: a step in plain integers, at the level of storages.

Views vanish (they cost nothing), parameters and other resident storages are one constant, and every op becomes the
storages that it reads and gives birth to, and the forms in which it can run. Solvers see nothing else.

What is decided has a number, its *subject*: a storage's index, or, above all storages, a call (`Problem.subject_of`).
The *option* chosen for a subject is a number too: `KEEP`, `RECOMPUTE`, `TRANSIENT` or a pack for storages, the index of
a form for calls. 0 is what happens if nothing is decided.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from fedhybrid.graph import Op, Role, StepGraph
from fedhybrid.planner.calls import Update, replay_form, updates_of
from fedhybrid.planner.costs import CallCost, CostTable
from fedhybrid.planner.inplace import in_place_arguments, split_targets
from fedhybrid.protocols import Optimizer

__all__ = [
    "BRIEF",
    "FIRST_PACK",
    "KEEP",
    "RECOMPUTE",
    "TRANSIENT",
    "Form",
    "Kind",
    "Pack",
    "PlanOp",
    "PlanUpdate",
    "Problem",
    "make_problem",
]

KEEP = 0
RECOMPUTE = 1  # dropped; made again when first needed; stays until its last use
TRANSIENT = 2  # as RECOMPUTE, but dropped and made again whenever the next use is far
BRIEF = 3  # as TRANSIENT, but made again for every single use: least memory, most work
FIRST_PACK = 4  # from here on: packed after its last forward use, unpacked as TRANSIENT is made again

# A storage that was made again stays if the backward pass reads it again within so many ops, by option.
_FAR = 1 << 30
_WINDOWS = {RECOMPUTE: _FAR, TRANSIENT: 4, BRIEF: 0}

# A storage smaller than this share of all droppable bytes is always kept.
_NEGLIGIBLE_RATIO = 1e-4


class Kind(IntEnum):
    """What a call of a program is."""

    OP = 0
    REPLAY = 1
    UPDATE = 2
    ENCODE = 3
    DECODE = 4


@dataclass(frozen=True, slots=True)
class Form:
    """One way to run a call: as a whole (`chunks` 1), or in so many chunks.

    Attributes:
        seconds, workspace_bytes: Its cost.
        in_place: Storages that its first birth may take over when this call is their last reader.
        exact: It gives the bits of the whole call.
    """

    chunks: int
    seconds: float
    workspace_bytes: int
    in_place: tuple[int, ...]
    exact: bool = True


@dataclass(frozen=True, slots=True)
class PlanOp:
    """A call as the planner sees it.

    Attributes:
        kind: OP, REPLAY, ENCODE or DECODE.
        op: Index in the graph's ops; of a pack in `Problem.packs` for ENCODE and DECODE.
        uid: Its number among all calls of the problem; the number of an OP is its position.
        reads: Temporary storages read.
        params: Trained parameters' storages read (their updates must wait).
        births: Storages that it creates.
        forms: Ways to run it; the first is the whole operator.
    """

    kind: Kind
    op: int
    uid: int
    reads: tuple[int, ...]
    params: tuple[int, ...]
    births: tuple[int, ...]
    forms: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Pack:
    """A storage in a codec's form: `stored` is the storage number of the packed bytes.

    `error` is the relative L2 error of the whole gradient when this storage alone is packed; 0 for loss-free codecs.
    """

    storage: int
    option: int
    codec: str
    stored: int
    nbytes: int
    error: float


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
        nbytes: Bytes of each storage; after those of the graph come those of the packs.
        ops: Compute ops in order; those from `backward_at` on are the backward pass.
        replays: For each storage that may be dropped and made again: the op that makes it.
        packs: Packed forms of storages. `encodes`, `decodes`: their calls by (storage, option).
        candidates: Storages born in the forward and read in the backward pass that can be dropped, largest first.
        intermediates: Storages of the forward pass with a replay that the backward pass does not read: gone after the
            forward pass.
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
    packs: list[Pack]
    encodes: dict[tuple[int, int], PlanOp]
    decodes: dict[tuple[int, int], PlanOp]
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

    @cached_property
    def calls(self) -> list[PlanOp]:
        """Every call by its `uid`."""
        found = [*self.ops, *self.replays.values(), *self.encodes.values(), *self.decodes.values()]
        return sorted(found, key=lambda call: call.uid)

    @cached_property
    def pack_of(self) -> dict[int, tuple[int, int]]:
        """Storage of packed bytes -> the storage that was packed, and its option."""
        return {pack.stored: (pack.storage, pack.option) for pack in self.packs}

    @cached_property
    def updates_of_grad(self) -> dict[int, list[int]]:
        """Gradient storage -> its updates."""
        found: dict[int, list[int]] = {}
        for update in self.updates:
            if update.grad >= 0:
                found.setdefault(update.grad, []).append(update.index)
        return found

    def subject_of(self, call: PlanOp) -> int:
        """The number under which a call's form is decided."""
        return len(self.nbytes) + call.uid

    def maker(self, storage: int, option: int) -> PlanOp:
        """The call that makes a dropped storage again."""
        return self.decodes[storage, option] if option >= FIRST_PACK else self.replays[storage]

    def window(self, option: int) -> int:
        """How many ops ahead the next backward use may be for a storage to stay until then."""
        return _WINDOWS.get(option, _WINDOWS[TRANSIENT])

    @cached_property
    def options(self) -> dict[int, list[int]]:
        """What may be decided about each candidate."""
        found = {s: [KEEP, *((RECOMPUTE, TRANSIENT, BRIEF) if s in self.replays else ())] for s in self.candidates}
        for storage, option in self.encodes:
            found[storage].append(option)
        return found

    @cached_property
    def pack_by_option(self) -> dict[tuple[int, int], Pack]:
        """(storage, option) -> the pack that it stands for."""
        return {(pack.storage, pack.option): pack for pack in self.packs}


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
        hold_gradients: See `Problem`.
        held_bytes: See `Problem`.
    """
    trained = {graph.storage_of(p) for p in graph.grads}
    ops: list[PlanOp] = []
    backward_at = sum(not op.is_view for op in graph.ops[: graph.backward_at])
    producer: dict[int, int] = {}
    for index, op in enumerate(graph.ops):
        if not op.is_view:
            ops.append(_plan_op(graph, Kind.OP, index, op, costs=costs, trained=trained, uid=len(ops)))
            for storage in ops[-1].births:
                producer[storage] = index
    outputs = {graph.storage_of(graph.loss), *([] if graph.aux is None else [graph.storage_of(graph.aux)])}
    held = outputs | {graph.storage_of(grad) for grad in graph.grads.values()}
    replays = {
        storage: _plan_op(graph, Kind.REPLAY, index, form, costs=costs, trained=trained, uid=len(ops) + number)
        for number, (storage, index, form) in enumerate(_replays(graph, costs, producer, held))
    }
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
        packs=[],
        encodes={},
        decodes={},
        candidates=sorted(candidates, key=lambda s: (-graph.storages[s].nbytes, s)),
        intermediates=[s for s in replays if s not in uses],
        uses=uses,
        updates=plan_updates,
        outputs=tuple(sorted(s for s in outputs if graph.storages[s].role is Role.TEMP)),
        resident_bytes=graph.resident_bytes + state_bytes,
        eager_peak_bytes=max(eager_timeline),
        eager_timeline=eager_timeline,
        eager_backward_at=eager_backward_at,
        seconds=sum(op.forms[0].seconds for op in ops) + sum(u.seconds for u in plan_updates),
        hold_gradients=hold_gradients,
        held_bytes=held_bytes,
    )


def optimizer_state_bytes(graph: StepGraph, optimizer: Optimizer) -> int:
    """Bytes of the optimizer's state tensors for all trained parameters."""
    return len(optimizer.state_names) * sum(graph.values[p].nbytes for p in graph.grads)


def _temp_storages(graph: StepGraph, values: tuple[int, ...]) -> tuple[int, ...]:
    storages = dict.fromkeys(graph.storage_of(v) for v in values)
    return tuple(s for s in storages if graph.storages[s].role is Role.TEMP)


def _plan_op(
    graph: StepGraph, kind: Kind, index: int, op: Op, *, costs: CostTable, trained: set[int], uid: int
) -> PlanOp:
    reads = _temp_storages(graph, op.inputs)
    outputs = tuple(v for v in op.outputs if v is not None)
    births = tuple(s for s in _temp_storages(graph, outputs) if s not in reads)
    whole = costs.of_op(graph, op)
    in_place = tuple(storage for _, storage in in_place_arguments(graph, op))
    forms = [Form(1, whole.seconds, whole.workspace_bytes, in_place)]
    for split in costs.splits_of(graph, op):
        taken = tuple(storage for _, storage in split_targets(graph, op))
        forms.append(Form(split.chunks, split.seconds, split.workspace_bytes, taken, split.exact))
    return PlanOp(
        kind=kind,
        op=index,
        uid=uid,
        reads=reads,
        params=tuple(sorted({graph.storage_of(v) for v in op.inputs} & trained)),
        births=births,
        forms=tuple(forms),
    )


def _plan_update(graph: StepGraph, index: int, update: Update, cost: CallCost) -> PlanUpdate:
    grad = graph.storage_of(update.grad)
    return PlanUpdate(
        index=index,
        param=graph.storage_of(update.param),
        grad=grad if graph.storages[grad].role is Role.TEMP else -1,
        seconds=cost.seconds,
        workspace_bytes=cost.workspace_bytes,
    )


def _replays(
    graph: StepGraph, costs: CostTable, producer: dict[int, int], held: set[int]
) -> Iterable[tuple[int, int, Op]]:
    """Forward storages that can be made again, each with its op and the form of it that is replayed.

    Not random, not written after birth, from inputs that are not either.
    """
    written = {graph.storage_of(w) for op in graph.ops for w in op.writes}
    for storage, index in producer.items():
        op = graph.ops[index]
        if index >= graph.backward_at or storage in written | held:
            continue
        form = replay_form(graph, op, exact_affine=costs.exact_affine)
        if form is None or any(graph.storage_of(v) in written and not _settled(graph, v, index) for v in form.inputs):
            continue
        if storage not in _temp_storages(graph, tuple(v for v in form.outputs if v is not None)):
            continue
        yield storage, index, form


def _settled(graph: StepGraph, value: int, index: int) -> bool:
    """Whether the value's storage is never written after the op at `index` has read it."""
    storage = graph.storage_of(value)
    return all(
        position < index for position, op in enumerate(graph.ops) for w in op.writes if graph.storage_of(w) == storage
    )
