"""Model + loss + batch -> one ATen graph of forward, loss and backward, captured on fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.fx import Node

from fedhybrid.errors import CaptureError, ConfigError
from fedhybrid.graph import torch_adapter as adapter
from fedhybrid.graph import torch_tracing as tracing
from fedhybrid.graph.batch import BatchSpec, batch_tensors, call_loss
from fedhybrid.graph.guard import check_trainable, untouched
from fedhybrid.graph.ir import Op, Ref, Role, StepGraph, Storage, Value

__all__ = ["capture_step"]

_VALUES = (
    "Shapes and Python branches must not depend on tensor values: use torch.where, masks or fixed sizes there, "
    "and no .item(), float() or boolean indexing."
)
_TRY_PLAIN = "Run loss_fn(model(x), y) once without FedHybrid: if that fails too, the model does not fit this batch."

_FORWARDED = {"aten.detach.default", "aten.alias.default", "aten.lift_fresh.default", "aten.detach_.default"}


def capture_step(
    model: nn.Module, loss_fn: Callable[..., Any], batch: Any, *, forward_only: bool = False
) -> tuple[StepGraph, BatchSpec]:
    """Captures forward, loss and backward of one training step as it would run now (train or eval mode as set).

    Nothing is computed: the model, its buffers and the random generator stay as they are, and no memory is used.

    Args:
        model: In the mode that it will run in.
        loss_fn: As in `prepare_step`.
        batch: As in `prepare_step`.
        forward_only: There is no backward pass, as no parameter requires a gradient.

    Raises:
        CaptureError: The model cannot be traced; names the operation.
        ConfigError: The batch or the loss is not of the expected form.
    """
    params, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    trained = [name for name, p in params.items() if p.requires_grad]
    check_trainable(model, loss_fn, forward_only=forward_only)
    leaves, spec = batch_tensors(batch)
    names = [*params, *buffers]
    boundary: list[Node | None] = []

    def whole_step(*flat: Tensor) -> list[Tensor | None]:
        state = dict(zip(names, flat[: len(names)], strict=True))
        inputs = pytree.tree_unflatten(flat[len(names) :], spec.structure)

        def stateless(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(model, state, args, kwargs)

        loss, aux = call_loss(stateless, loss_fn, inputs)
        boundary.append(tracing.traced_so_far())
        wanted = [given for given, name in zip(flat, params, strict=False) if params[name].requires_grad]
        grads = () if forward_only else torch.autograd.grad(loss, wanted, allow_unused=True)
        with torch.no_grad():  # functional_call leaves a buffer that the model assigned anew in `state`
            for given, name in zip(flat, names, strict=False):
                if state[name] is not given:
                    given.copy_(state[name])
        return [loss, aux, *grads]

    try:
        with untouched(model):
            traced, held = tracing.trace(whole_step, [*params.values(), *buffers.values(), *leaves])
        builder = _Builder(traced, held, boundary[-1])
        builder.add_inputs(params, buffers, leaves)
        return builder.build(trained), spec
    except (CaptureError, ConfigError):
        raise
    except Exception as error:  # whatever the model's own code or torch's tracer raises is one thing to the user
        first_line = (str(error).strip().splitlines() or ["(no message)"])[0]
        advice = _VALUES if tracing.depends_on_values(error) else _TRY_PLAIN
        raise CaptureError(_where(error), f"{type(error).__name__}: {first_line}", advice) from error


def _where(error: Exception) -> str:
    """The user's line at which tracing failed: the last frame outside torch and this package."""
    place, step = "an unknown operation", error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if "/torch/" not in file and "/fedhybrid/" not in file:
            place = f"{step.tb_frame.f_code.co_name} ({file.rsplit('/', 1)[-1]}:{step.tb_lineno})"
        step = step.tb_next
    return place


class _Builder:
    """Turns a traced graph into a StepGraph."""

    def __init__(self, traced: torch.fx.GraphModule, held: dict[int, Node | None], boundary: Node | None) -> None:
        self.traced, self.held_by_key, self.boundary = traced, held, boundary
        self.key_of: dict[int, int] = {}  # storage that an op makes -> its key in `held_by_key`
        self.ops_at: dict[Node, int] = {}  # ops up to and including the node
        self.ops: list[Op] = []
        self.values: list[Value] = []
        self.storages: list[Storage] = []
        self.constants: dict[int, Tensor] = {}
        self.value_of: dict[Node, int | None] = {}
        self.outputs_of: dict[Node, tuple[int | None, ...]] = {}
        self.backward_at = 0

    def add_inputs(self, params: dict[str, nn.Parameter], buffers: dict[str, Tensor], batch: list[Tensor]) -> None:
        placeholders = [node for node in self.traced.graph.nodes if node.op == "placeholder"]
        inputs: list[tuple[Role, str, Tensor]] = [(Role.PARAM, name, tensor) for name, tensor in params.items()]
        inputs += [(Role.BUFFER, name, tensor) for name, tensor in buffers.items()]
        inputs += [(Role.BATCH, f"batch.{i}", tensor) for i, tensor in enumerate(batch)]
        owners: dict[int, int] = {}  # real memory -> storage: inputs may be views of one block
        for node, (role, name, tensor) in zip(placeholders, inputs, strict=True):
            block = tensor.untyped_storage()
            value = self._new_value(node.meta["val"], role, name, storage=owners.get(block.data_ptr()))
            if block.nbytes():
                owners[block.data_ptr()] = self.values[value].storage
            self.value_of[node] = value
            self.storages[self.values[value].storage] = replace(
                self.storages[self.values[value].storage], nbytes=block.nbytes()
            )
        self.params = {name: self._value(placeholders[i]) for i, name in enumerate(params)}
        self.buffers = {name: self._value(placeholders[len(params) + i]) for i, name in enumerate(buffers)}
        self.batch = [self._value(node) for node in placeholders[len(params) + len(buffers) :]]

    def build(self, trained: list[str]) -> StepGraph:
        for node in self.traced.graph.nodes:
            if node.op == "get_attr":
                self._add_constant(node)
            elif node.op == "call_function":
                self._add_call(node)
            elif node.op == "output":
                loss, aux, *grads = node.args[0]
            self.ops_at[node] = len(self.ops)
        if self.boundary is not None:
            self.backward_at = self.ops_at[self.boundary]
        return StepGraph(
            ops=self.ops,
            values=self.values,
            storages=self.storages,
            backward_at=self.backward_at,
            params=self.params,
            buffers=self.buffers,
            batch=self.batch,
            constants=self.constants,
            loss=self._value(loss),
            aux=None if aux is None else self._value(aux),
            grads={self.params[n]: self._value(g) for n, g in zip(trained, grads, strict=True) if g is not None},
            held=self._held(),
        )

    def _held(self) -> dict[int, int]:
        found = {}
        for storage, key in self.key_of.items():
            if key in self.held_by_key:
                newest = self.held_by_key[key]
                found[storage] = len(self.ops) if newest is None else self.ops_at[newest] - 1
        return found

    def _value(self, node: Node) -> int:
        index = self.value_of[node]
        assert index is not None, node
        return index

    def _new_value(
        self, fake: Tensor, role: Role, name: str, *, base: int | None = None, storage: int | None = None
    ) -> int:
        if base is not None:
            storage = self.values[base].storage
        elif storage is None:
            storage = len(self.storages)
            self.storages.append(Storage(storage, fake.untyped_storage().nbytes(), role, name))
            if role is Role.TEMP:
                self.key_of[storage] = tracing.memory_key(fake)
        index = len(self.values)
        shape, stride = tuple(int(n) for n in fake.shape), tuple(int(n) for n in fake.stride())
        self.values.append(Value(index, storage, shape, stride, int(fake.storage_offset()), fake.dtype, base))
        return index

    def _add_constant(self, node: Node) -> None:
        tensor = getattr(self.traced, str(node.target))
        if not isinstance(tensor, Tensor):
            raise CaptureError(str(node.target), "a Python object where a tensor was expected", _TRY_PLAIN)
        value = self._new_value(tensor, Role.CONSTANT, str(node.target))
        self.value_of[node] = value
        self.constants[value] = tensor

    def _add_call(self, node: Node) -> None:
        target = str(node.target)
        if not isinstance(node.target, adapter.OpOverload):
            if getattr(node.target, "__name__", "") == "getitem":
                source, position = node.args
                assert isinstance(source, Node)
                assert isinstance(position, int)
                self.value_of[node] = self.outputs_of[source][position]
                return
            raise CaptureError(
                target, "not an ATen operator", "Higher-order operators (torch.cond, ...) are not supported."
            )
        if target in _FORWARDED:
            assert isinstance(node.args[0], Node)
            self.value_of[node] = self._value(node.args[0])
            return
        func = node.target
        args = _with_refs(node.args, self._value)
        kwargs = _with_refs(dict(node.kwargs), self._value)
        writes = [ref.value for ref in adapter.written_arguments(func, args, kwargs) if isinstance(ref, Ref)]
        constants = {self.values[v].storage for v in self.constants}
        if any(self.values[v].storage in constants for v in writes):
            advice = "Make that tensor a buffer (register_buffer), so that the step can own it."
            raise CaptureError(target, "it writes a tensor that is neither parameter nor buffer", advice)
        in_place = bool(func._schema.returns) and bool(writes) and func._schema.returns[0].alias_info is not None
        is_view = not in_place and adapter.aliases_input(func)
        base = writes[0] if in_place else next((r.value for r in _first_ref(args)), None) if is_view else None
        results = node.meta.get("val", ())  # an operator that only checks returns nothing
        is_tuple = isinstance(results, (tuple, list))
        if isinstance(results, (tuple, list)):
            given = [a.meta["val"] if isinstance(a, Node) else a for a in node.args]
            results = adapter.as_computed(func, given, results)
        outputs = tuple(
            self._new_value(fake, Role.TEMP, node.name, base=base) if isinstance(fake, Tensor) else None
            for fake in (results if is_tuple else [results])
        )
        self.outputs_of[node] = outputs
        self.value_of[node] = None if is_tuple or not outputs else outputs[0]
        self.ops.append(
            Op(
                name=node.name,
                func=func,
                target=target,
                args=args,
                kwargs=kwargs,
                outputs=outputs,
                is_tuple=is_tuple,
                is_view=is_view,
                writes=tuple(writes),
                is_random=adapter.is_random(func, args, kwargs),
                eager_inplace=in_place,
            )
        )


def _first_ref(args: tuple[Any, ...]) -> list[Ref]:
    return [arg for arg in args if isinstance(arg, Ref)][:1]


def _with_refs(args: Any, value: Callable[[Node], int]) -> Any:
    if isinstance(args, Node):
        return Ref(value(args))
    if isinstance(args, (tuple, list)):
        return (
            tuple(_with_refs(a, value) for a in args)
            if isinstance(args, tuple)
            else [_with_refs(a, value) for a in args]
        )
    if isinstance(args, dict):
        return {key: _with_refs(a, value) for key, a in args.items()}
    return args
