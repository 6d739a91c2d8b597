"""One operator in several calls, each on a part of its tensors.

What the operator needs beside its results shrinks with the part, and results may take over the memory of arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor

from fedhybrid.graph import Ref, Value, overload

__all__ = ["Split", "bounds", "cut"]

_VECTOR_BYTES = 64  # the widest vector of any CPU that torch has kernels for
_HALF_TYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Split:
    """How one operator is run in chunks.

    Attributes:
        func: Called as the operator, with `chunks=` and `into=` beside its own arguments. Gives what the operator
            gives: shapes, strides and types.
        most_chunks: (arguments, keyword arguments, values of the graph) -> the largest sensible `chunks`; 1: the
            operator cannot be cut here.
        overwrites: Positions of arguments whose memory the first result may take over through `into`, where shape,
            strides and type are equal.
        exact: The results are the operator's bit for bit by construction. Elsewhere sums of floats are made in another
            order, or the library may choose another kernel for the smaller problem.
        whole_takes_over: With one chunk it costs what the operator costs and still honours `into`.
    """

    func: Callable[..., Any]
    most_chunks: Callable[[Sequence[Any], Mapping[str, Any], Sequence[Value]], int]
    overwrites: tuple[int, ...] = ()
    exact: bool = False
    whole_takes_over: bool = False

    def may_take_over(self, args: Sequence[Any], values: Sequence[Value], result: Value) -> tuple[int, ...]:
        """Those of `overwrites` whose tensor is laid out as the first result."""
        layout = (result.shape, result.stride, result.dtype)
        given = ((p, args[p]) for p in self.overwrites if p < len(args))
        refs = ((p, values[arg.value]) for p, arg in given if isinstance(arg, Ref))
        return tuple(p for p, v in refs if (v.shape, v.stride, v.dtype) == layout)


def cut(
    target: str,
    *,
    along: Mapping[int | str, int],
    joined: tuple[int | None, ...],
    shared: tuple[int | str, ...] = (),
    counted: tuple[int, ...] = (),
    dense: bool = False,
    like: int | None = None,
    overwrites: tuple[int, ...] = (),
    exact: bool = False,
    can: Callable[[Sequence[Any], tuple[int, ...]], bool] = lambda args, shape: True,
) -> Split:
    """The split of an operator whose results are made of the results of its parts.

    Args:
        target: The operator, such as "aten.mm.default".
        along: Which arguments are cut (position, or name where it is given by name) and along which dimension. The
            first one says how many parts there can be.
        joined: For each result the dimension along which parts are put together, or None where they are added up.
        shared: Those of `along` that may also be broadcast: they are cut only where they have the first one's number
            of dimensions and its size.
        counted: Positions of an integer, or of a list that begins with one, that states the size of what is cut.
        dense: Parts are copied together first: for kernels that are fast, or exact, on dense memory only.
        like: Position of the argument whose layout the first result has, where parts do not show it.
        overwrites: See `Split`; these arguments are cut along the first result's dimension.
        exact: See `Split`.
        can: (arguments, shape of the first cut argument) -> whether the operator may be cut at all.
    """
    operator = overload(target)
    first, first_dim = next(iter(along.items()))
    assert isinstance(first, int)

    def chunked(*args: Any, chunks: int, into: Tensor | None = None, **kwargs: Any) -> Any:
        lead: Tensor = args[first]
        size = lead.shape[first_dim]
        named: dict[int | str, Any] = dict(enumerate(args)) | kwargs
        cuts = {k: d for k, d in along.items() if k not in shared or _alike(named.get(k), d, lead, first_dim)}
        results = [_Result(dim, size) for dim in joined]
        if like is not None and into is None:
            into = torch.empty_like(args[like])
        results[0].whole = into
        layouts = [(a.stride(), a.element_size(), d) for k, d in cuts.items() if isinstance(a := named[k], Tensor)]
        for begin, end in pairwise(bounds(size, chunks, _grain(layouts) if dense else 1)):
            part = {k: _part(a, cuts[k], begin, end, dense) if k in cuts else a for k, a in named.items()}
            for position in counted:
                part[position] = _recount(part[position], end - begin)
            positional = [part.pop(i) for i in range(len(args))]
            found = operator(*positional, **{str(name): a for name, a in part.items()})
            del positional, part
            parts = list(found) if isinstance(found, (tuple, list)) else [found]
            del found
            for result in results:
                result.take(parts.pop(0), begin)  # each part is let go before the next is looked at
        wholes = [result.finish() for result in results]
        return wholes[0] if len(wholes) == 1 else tuple(wholes)

    def most_chunks(args: Sequence[Any], kwargs: Mapping[str, Any], values: Sequence[Value]) -> int:
        lead = args[first]
        if not isinstance(lead, Ref) or not can(args, values[lead.value].shape):
            return 1
        given: dict[int | str, Any] = dict(enumerate(args)) | dict(kwargs)
        cut_values = [(values[a.value], d) for k, d in along.items() if isinstance(a := given.get(k), Ref)]
        layouts = [(v.stride, v.dtype.itemsize, d) for v, d in cut_values]
        if dense and len({v.stride for v, _ in cut_values if len(v.shape) > 1}) > 1:
            return 1  # kernels read tensors of several layouts in an order that changes with the part
        return max(1, values[lead.value].shape[first_dim] // (_grain(layouts) if dense else 1))

    chunked.__name__ = chunked.__qualname__ = f"split_{target.split('.')[1].removeprefix('native_').strip('_')}"
    return Split(func=chunked, most_chunks=most_chunks, overwrites=overwrites, exact=exact)


def bounds(size: int, chunks: int, grain: int = 1) -> list[int]:
    """Edges of at most `chunks` parts of nearly equal size, each but the last a multiple of `grain`.

    With a grain the last part has at least two elements too.

    >>> bounds(10, 4)
    [0, 2, 5, 7, 10]
    >>> bounds(40, 3, grain=16)
    [0, 16, 40]
    >>> bounds(5, 5, grain=2)
    [0, 2, 5]
    """
    inner = {size * i // chunks // grain * grain for i in range(1, chunks)}
    return [0, *sorted(edge for edge in inner if 0 < edge <= size - min(grain, 2)), size]


def _grain(layouts: Iterable[tuple[Sequence[int], int, int]]) -> int:
    """Elements along the cut dimension that belong together, from (strides, bytes of an element, dimension).

    A whole vector where that dimension is the innermost in the memory of a tensor with several: kernels may round
    differently in the last, incomplete vector of a row, so no part may end inside one. Else two: a single one makes
    some layouts contiguous that are not, and then other kernels run.
    """
    innermost = (_VECTOR_BYTES // size for strides, size, dim in layouts if len(strides) > 1 and strides[dim] == 1)
    return max(innermost, default=2)


def _alike(arg: Any, dim: int, lead: Tensor, lead_dim: int) -> bool:
    return isinstance(arg, Tensor) and arg.dim() == lead.dim() and arg.shape[dim] == lead.shape[lead_dim]


def _recount(given: Any, count: int) -> Any:
    return count if isinstance(given, int) else [count, *given[1:]]


def _part(arg: Any, dim: int, begin: int, end: int, dense: bool) -> Any:
    if not isinstance(arg, Tensor) or not arg.numel():  # statistics that batch norm did not need are empty
        return arg
    part = arg.narrow(dim, begin, end - begin)
    if dense and not part.is_contiguous():
        return torch.empty_like(part, memory_format=torch.preserve_format).copy_(part)
    return part


@final
class _Result:
    """One result of an operator while its parts come in.

    Attributes:
        whole: Memory for the result, once there is some.
    """

    def __init__(self, dim: int | None, size: int) -> None:
        self.whole: Tensor | None = None
        self._dim, self._size, self._dtype = dim, size, torch.float32
        self._exists = False

    def take(self, part: Tensor | None, begin: int) -> None:
        """Adds the part to the sum, or copies it to its place along the cut dimension."""
        if part is None:
            return
        self._exists = True
        if self._dim is None:
            self._dtype = part.dtype
            if self.whole is not None:
                self.whole.add_(part)
            else:  # sums of 16-bit parts are made in 32 bits
                self.whole = part.float() if part.dtype in _HALF_TYPES else part
        elif self.whole is None and part.shape[self._dim] == self._size:
            self.whole = part
        else:
            if self.whole is None:
                self.whole = _empty_whole(part, self._dim, self._size)
            self.whole.narrow(self._dim, begin, part.shape[self._dim]).copy_(part)

    def finish(self) -> Tensor | None:
        """The result; None where the operator gave none."""
        if self.whole is None or not self._exists:
            return None
        return self.whole.to(self._dtype) if self._dim is None else self.whole


def _empty_whole(part: Tensor, dim: int, size: int) -> Tensor:
    """Memory for the whole of which `part` is a piece, its dimensions in the same order."""
    shape = list(part.shape)
    shape[dim] = size
    strides = [1] * part.dim()
    expected = 1
    for d in sorted(range(part.dim()), key=lambda d: (part.stride(d), -d)):
        strides[d] = expected
        expected *= shape[d]
    return torch.empty_strided(shape, strides, dtype=part.dtype, device=part.device)
