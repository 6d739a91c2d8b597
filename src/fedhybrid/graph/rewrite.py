"""Loss-free rewrites that cost nothing: functional form, dead code, clamp-type backward from the output.

Each keeps every number bit for bit. In-place forms come back later, where the plan shows that the input dies.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedhybrid.errors import CaptureError
from fedhybrid.graph import torch_adapter as adapter
from fedhybrid.graph.ir import Op, Ref, Role, StepGraph, Storage, map_refs

__all__ = ["rewrite"]

# In-place operators and the functional operator that gives the same bits.
_FUNCTIONAL = {
    "aten.relu_.default": "aten.relu.default",
    "aten.hardtanh_.default": "aten.hardtanh.default",
    "aten.leaky_relu_.default": "aten.leaky_relu.default",
    "aten.elu_.default": "aten.elu.default",
    "aten.silu_.default": "aten.silu.default",
    "aten.hardswish_.default": "aten.hardswish.default",
    "aten.hardsigmoid_.default": "aten.hardsigmoid.default",
    "aten.sigmoid_.default": "aten.sigmoid.default",
    "aten.tanh_.default": "aten.tanh.default",
    "aten.add_.Tensor": "aten.add.Tensor",
    "aten.sub_.Tensor": "aten.sub.Tensor",
    "aten.mul_.Tensor": "aten.mul.Tensor",
    "aten.div_.Tensor": "aten.div.Tensor",
    "aten.mul_.Scalar": "aten.mul.Scalar",
    "aten.div_.Scalar": "aten.div.Scalar",
}

# In-place operators that change shape or strides but no element, and the view that does the same.
_METADATA_VIEWS = {
    "aten.squeeze_.default": "aten.squeeze.default",
    "aten.squeeze_.dim": "aten.squeeze.dim",
    "aten.squeeze_.dims": "aten.squeeze.dims",
    "aten.t_.default": "aten.t.default",
    "aten.transpose_.default": "aten.transpose.int",
    "aten.unsqueeze_.default": "aten.unsqueeze.default",
}

# Autograd rebuilds such a view from the changed tensor, and the rebuilt one differs between tracing and eager.
_NO_METADATA = "Use the form without underscore (t.squeeze(0) instead of t.squeeze_(0))."

# Backward operators whose gate (argument 1) is the same from the output as from the input, and their forward.
# hardtanh: y <= low iff x <= low, y >= high iff x >= high. leaky_relu with a positive slope keeps the sign.
_GATE_FROM_OUTPUT = {
    "aten.hardtanh_backward.default": "aten.hardtanh.default",
    "aten.leaky_relu_backward.default": "aten.leaky_relu.default",
}
_GATE_DEFAULTS: dict[str, tuple[float, ...]] = {
    "aten.hardtanh.default": (-1.0, 1.0),
    "aten.leaky_relu.default": (0.01,),
}


def rewrite(graph: StepGraph) -> StepGraph:
    """The graph as the planner wants it: functional where possible, without dead ops and needless saves."""
    graph = _functional(graph)
    graph = _gates_from_outputs(graph)
    return _without_dead_ops(graph)


def _functional(graph: StepGraph) -> StepGraph:
    """Gives the result of an in-place op on a whole temporary a storage of its own.

    Autograd has checked at capture that nothing reads the old content later, so every later use of any alias of the
    written storage means the new content. An op stays in place where a partial view is written or another view of the
    storage is read afterwards; what such an op wrote is never replayed (see `planner.problem`).
    """
    values, storages = list(graph.values), list(graph.storages)
    last_use = _last_uses(graph)
    current: dict[int, int] = {}
    ops: list[Op] = []

    def now(value: int) -> int:
        while value in current:
            value = current[value]
        return value

    for position, op in enumerate(graph.ops):
        args, kwargs = map_refs((op.args, op.kwargs), lambda v: Ref(now(v)))
        functional = _FUNCTIONAL.get(op.target)
        written = op.writes[0] if op.writes else -1
        result = op.outputs[0] if op.outputs else None
        if op.target in _METADATA_VIEWS and result is not None:
            if _read_later(graph, {now(written), written, result}, last_use, position):
                raise CaptureError(op.name, f"{op.target} changes a tensor that has another view", _NO_METADATA)
            view, base = _METADATA_VIEWS[op.target], now(written)
            values[result] = replace(values[result], storage=values[base].storage, base=base)
            current[written] = result
            ops.append(_as(op, view, args, kwargs, is_view=True))
            continue
        movable = (
            functional is not None
            and result is not None
            and _may_leave_place(
                graph, root=now(written), written=written, result=result, last_use=last_use, position=position
            )
        )
        if movable:
            assert functional is not None
            assert result is not None
            storage = len(storages)
            old = values[result]
            storages.append(Storage(storage, graph.storages[old.storage].nbytes, Role.TEMP, op.name))
            values[result] = replace(old, storage=storage, base=None)
            current[written] = result
            ops.append(_as(op, functional, args, kwargs, is_view=False))
        else:
            if op.is_view:  # a view of a value that has moved moves with it
                base = next(ref.value for ref in args if isinstance(ref, Ref))
                for out in op.outputs:
                    if out is not None:
                        values[out] = replace(values[out], storage=values[base].storage, base=base)
            elif op.eager_inplace and result is not None:
                root = now(written)
                values[result] = replace(values[result], storage=values[root].storage, base=root)
            ops.append(replace(op, args=args, kwargs=kwargs, writes=tuple(now(w) for w in op.writes)))
    return replace(
        graph,
        ops=ops,
        values=values,
        storages=storages,
        loss=now(graph.loss),
        aux=None if graph.aux is None else now(graph.aux),
        grads={param: now(grad) for param, grad in graph.grads.items()},
    )


def _as(op: Op, target: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, is_view: bool) -> Op:
    """The op as another operator that writes nothing."""
    return replace(
        op,
        func=adapter.overload(target),
        target=target,
        args=args,
        kwargs=kwargs,
        writes=(),
        is_view=is_view,
        eager_inplace=False,
    )


def _may_leave_place(
    graph: StepGraph, *, root: int, written: int, result: int, last_use: dict[int, int], position: int
) -> bool:
    old, new = graph.values[written], graph.values[result]
    if graph.storages[old.storage].role is not Role.TEMP or not graph.covers_storage(written):
        return False
    if (old.shape, old.stride, old.dtype) != (new.shape, new.stride, new.dtype):
        return False
    others = (graph.values[v] for v in graph.ops[position].inputs if v != written)
    if any(other.dtype != old.dtype and other.shape for other in others):
        return False  # the functional form would promote its result to the wider type
    return not _read_later(graph, {root, written, result}, last_use, position)


def _read_later(graph: StepGraph, known: set[int], last_use: dict[int, int], position: int) -> bool:
    """Whether another view of the same storage, made before the op at `position`, is read after it."""
    newest, storages = max(known), {graph.storage_of(v) for v in known}
    aliases = (v.index for v in graph.values[:newest] if v.storage in storages and v.index not in known)
    return any(last_use.get(v, -1) > position for v in aliases)


def _last_uses(graph: StepGraph) -> dict[int, int]:
    last: dict[int, int] = {}
    for position, op in enumerate(graph.ops):
        for value in op.inputs:
            last[value] = position
    for value in (graph.loss, *([] if graph.aux is None else [graph.aux]), *graph.grads.values()):
        last[value] = len(graph.ops)
    return last


def _gates_from_outputs(graph: StepGraph) -> StepGraph:
    """Lets the backward of a clamp read the clamp's output when that saves its input.

    Only where the output is needed by the backward pass anyway, or the input is not (else it would keep more), with
    the same bounds, and where nothing ever writes into input or output.
    """
    written = {graph.storage_of(w) for op in graph.ops for w in op.writes}
    copied_from = _copies(graph, written)
    output_of: dict[tuple[str, int, tuple[float, ...]], int] = {}
    for op in graph.ops[: graph.backward_at]:
        if op.target in _GATE_DEFAULTS and op.outputs[0] is not None:
            source = copied_from.get(op.args[0].value, op.args[0].value)
            output_of[op.target, source, _gate_options(op, 1)] = op.outputs[0]
    readers: dict[int, set[int]] = {}
    for position in range(graph.backward_at, len(graph.ops)):
        for value in graph.ops[position].inputs:
            readers.setdefault(graph.storage_of(value), set()).add(position)
    ops = list(graph.ops)
    for position in range(graph.backward_at, len(ops)):
        op = ops[position]
        forward = _GATE_FROM_OUTPUT.get(op.target)
        if forward is None or not _gate_is_exact(op):
            continue
        saved = op.args[1].value
        source = copied_from.get(saved, saved)
        output = output_of.get((forward, source, _gate_options(op, 2, forward)))
        if output is None or written & {graph.storage_of(v) for v in (saved, source, output)}:
            continue
        output_kept = bool(readers.get(graph.storage_of(output)))
        input_kept = bool(readers.get(graph.storage_of(saved), set()) - {position})
        if output_kept or not input_kept:
            ops[position] = replace(op, args=(op.args[0], Ref(output), *op.args[2:]))
    return replace(graph, ops=ops)


def _gate_options(op: Op, first: int, forward: str | None = None) -> tuple[float, ...]:
    """The clamp's numbers (bounds or slope), of the forward or the backward op, defaults filled in."""
    defaults = _GATE_DEFAULTS[forward or op.target]
    given = tuple(float(a) for a in op.args[first : first + len(defaults)])
    return given + defaults[len(given) :]


def _gate_is_exact(op: Op) -> bool:
    if op.target == "aten.leaky_relu_backward.default":
        return bool(float(op.args[2]) > 0 and not op.args[3])
    return True


def _copies(graph: StepGraph, written: set[int]) -> dict[int, int]:
    """Clones and what they are unchanged copies of: PyTorch clones the input of an in-place clamp to save it."""
    found: dict[int, int] = {}
    for op in graph.ops:
        if op.target == "aten.clone.default" and op.outputs[0] is not None:
            source: int = op.args[0].value
            unchanged = not written & {graph.storage_of(source), graph.storage_of(op.outputs[0])}
            if unchanged and graph.storages[graph.storage_of(source)].role is Role.TEMP:
                found[op.outputs[0]] = found.get(source, source)
    return found


def _without_dead_ops(graph: StepGraph) -> StepGraph:
    """Drops ops whose results nothing reads, unless they write a tensor that outlives the step or is read later.

    Random ops stay even if unused: dropping one would shift the generator against eager.
    """
    needed = {graph.loss, *graph.grads.values(), *([] if graph.aux is None else [graph.aux])}
    needed_storages = {graph.storage_of(v) for v in needed}
    kept: list[bool] = [False] * len(graph.ops)
    for position in reversed(range(len(graph.ops))):
        op = graph.ops[position]
        outputs = [v for v in op.outputs if v is not None]
        used = any(v in needed for v in outputs)
        writes_something = any(
            graph.storages[graph.storage_of(w)].role is not Role.TEMP or graph.storage_of(w) in needed_storages
            for w in op.writes
        )
        if used or writes_something or op.is_random or not op.outputs:  # no outputs: a check that raises
            kept[position] = True
            needed.update(op.inputs)
            needed_storages.update(graph.storage_of(v) for v in op.inputs)
    backward_at = sum(kept[: graph.backward_at])
    return replace(graph, ops=[op for op, keep in zip(graph.ops, kept, strict=True) if keep], backward_at=backward_at)
