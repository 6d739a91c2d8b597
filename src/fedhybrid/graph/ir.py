"""The training step as data: operators over values, values over storages.

A *storage* is a block of memory (an alias class); a *value* is one tensor view of a storage; an *op* is one call of an
ATen operator. Memory is planned per storage, code is generated per value. Nothing here holds real tensors but the
constants that the model itself holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

__all__ = ["Op", "Ref", "Role", "StepGraph", "Storage", "Value", "map_refs", "refs_of"]


class Role(StrEnum):
    """Who owns a storage. Everything but TEMP is resident: it lives before and after the step."""

    PARAM = "param"
    BUFFER = "buffer"
    BATCH = "batch"
    CONSTANT = "constant"
    TEMP = "temp"


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for a value inside an op's arguments."""

    value: int


@dataclass(frozen=True, slots=True)
class Storage:
    """One block of memory. `name` is the parameter's or buffer's name, or the producing op's."""

    index: int
    nbytes: int
    role: Role
    name: str


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor: a view of `storage`. `base` is the value it is a view of, or None for the storage's first value."""

    index: int
    storage: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    base: int | None

    @property
    def nbytes(self) -> int:
        """Bytes of the elements (not of the storage)."""
        return self.numel * self.dtype.itemsize

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count


@dataclass(frozen=True, slots=True)
class Op:
    """One operator call.

    Attributes:
        name: Unique and readable; used in messages only.
        func: The operator, called as `func(*args, **kwargs)` with each `Ref` replaced by its tensor.
        target: Stable text of the operator, for fingerprints and signatures.
        outputs: One value index per output, None where the operator returns None there.
        is_tuple: The operator returns a tuple or list even if `outputs` has one entry.
        is_view: All outputs are views of the first tensor argument; costs neither memory nor time.
        writes: Values whose memory the op changes.
        is_random: Draws from the generator.
        eager_inplace: Eager PyTorch ran this op in place on its first argument.
    """

    name: str
    func: Callable[..., Any]
    target: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int | None, ...]
    is_tuple: bool = False
    is_view: bool = False
    writes: tuple[int, ...] = ()
    is_random: bool = False
    eager_inplace: bool = False

    @property
    def inputs(self) -> tuple[int, ...]:
        """Values that the op reads, in the order of its arguments, each once."""
        return tuple(dict.fromkeys(ref.value for ref in refs_of((self.args, self.kwargs))))


@dataclass(kw_only=True)
class StepGraph:
    """A whole training step but for the optimizer: forward, loss, backward.

    Attributes:
        backward_at: Index in `ops` of the first op of the backward pass; behind the last op where there is none.
        params, buffers, batch: Value indices of the step's inputs, in the model's order.
        constants: Tensors that the model holds outside its parameters and buffers, by value index.
        loss: The scalar loss. `aux`: what the loss function returned beside it, or None.
        grads: Gradient value of each parameter that has one, by parameter value.
        held: Of the graph as captured: for each storage that an op makes, the last op while eager PyTorch still refers
            to it (by a Python variable, inside a layer written in C++, or in autograd); `len(ops)` if for good.
    """

    ops: list[Op]
    values: list[Value]
    storages: list[Storage]
    backward_at: int
    params: dict[str, int]
    buffers: dict[str, int]
    batch: list[int]
    constants: dict[int, Tensor]
    loss: int
    aux: int | None
    grads: dict[int, int]
    held: dict[int, int] = field(default_factory=dict)

    def storage_of(self, value: int) -> int:
        """Index of the storage that a value views."""
        return self.values[value].storage

    def covers_storage(self, value: int) -> bool:
        """Whether the value's elements fill its storage exactly once (so that it may be overwritten as a whole)."""
        v = self.values[value]
        return v.nbytes == self.storages[v.storage].nbytes and is_dense(v.shape, v.stride)

    @property
    def resident_bytes(self) -> int:
        """Parameters, buffers, batch and constants (optimizer state is the optimizer's)."""
        return sum(s.nbytes for s in self.storages if s.role is not Role.TEMP)


def is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the strides are those of a permuted contiguous tensor: no gaps, no overlaps."""
    expected = 1
    for extent, step in sorted(((n, s) for n, s in zip(shape, stride, strict=True) if n != 1), key=lambda p: p[1]):
        if step != expected:
            return False
        expected *= extent
    return True


def refs_of(args: Any) -> Iterator[Ref]:
    """Every `Ref` inside nested tuples, lists and dictionaries, in order."""
    if isinstance(args, Ref):
        yield args
    elif isinstance(args, (tuple, list)):
        for item in args:
            yield from refs_of(item)
    elif isinstance(args, dict):
        for item in args.values():
            yield from refs_of(item)


def map_refs(args: Any, change: Callable[[int], Any]) -> Any:
    """The same nest with every `Ref` replaced by `change(its value)`."""
    if isinstance(args, Ref):
        return change(args.value)
    if isinstance(args, (tuple, list)):
        return type(args)(map_refs(item, change) for item in args)
    if isinstance(args, dict):
        return {key: map_refs(item, change) for key, item in args.items()}
    return args
