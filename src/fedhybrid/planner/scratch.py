"""Running one call on scratch tensors: what it allocates and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedhybrid.graph import Op, StepGraph, Value, allocator_events, map_refs, peak_of

__all__ = [
    "FILLS",
    "Call",
    "Fill",
    "birth_bytes",
    "measure_bytes",
    "measure_ratio",
    "measure_seconds",
    "scratch",
    "scratch_arguments",
]

_MARKER_BYTES = 7919  # a size that no operator allocates, to cut the stream of allocator events at calls
_TIMED_RUNS = 3

Call = Callable[[], Any]
Fill = Callable[[Tensor], None]


def _normal(flat: Tensor) -> None:
    flat.normal_()


def _uniform(flat: Tensor) -> None:
    flat.uniform_()


def _ones(flat: Tensor) -> None:
    flat.fill_(1)


# Tried in this order until the operator accepts its arguments (probabilities must lie in [0, 1], for example).
FILLS: tuple[Fill, ...] = (_normal, _uniform, _ones)


def scratch(value: Value, fill: Fill | None = _normal) -> Tensor:
    """A tensor of the value's shape, strides and type, filled with ordinary numbers (integers, or no fill: zeros)."""
    extent = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride, strict=True)) if value.numel else 0
    flat = torch.zeros(extent, dtype=value.dtype)
    if fill is not None and value.dtype.is_floating_point:
        fill(flat)
    return flat.as_strided(value.shape, value.stride)


def scratch_arguments(graph: StepGraph, op: Op, fill: Fill) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An operator's arguments and keyword arguments with a scratch tensor for each value."""
    tensors = {v: scratch(graph.values[v], fill) for v in op.inputs}
    args, kwargs = map_refs((op.args, op.kwargs), tensors.__getitem__)
    return args, kwargs


def birth_bytes(graph: StepGraph, op: Op) -> int:
    """Bytes of the storages that a call leaves behind; none where it wrote in place."""
    if op.eager_inplace and op.writes:
        return 0
    return sum(graph.storages[graph.storage_of(v)].nbytes for v in op.outputs if v is not None)


def measure_bytes(makers: Sequence[tuple[Callable[[], Call], int]]) -> list[tuple[int, int]]:
    """Workspace and hidden bytes (see `CallCost`) of each call, given with the bytes that its outputs have.

    The calls are made, with their scratch tensors, and run one at a time.
    """
    with allocator_events() as events:
        for make, _ in makers:
            call = make()
            torch.empty(_MARKER_BYTES, dtype=torch.uint8)
            kept = call()
            torch.empty(_MARKER_BYTES, dtype=torch.uint8)
            del kept, call
    pieces = list(_between_markers(events))
    assert len(pieces) == len(makers), "the allocator's events could not be cut at the markers"
    found = []
    for (_, births), piece in zip(makers, pieces, strict=True):
        hidden_bytes = max(0, sum(piece) - births)
        found.append((max(0, peak_of(piece) - births - hidden_bytes), hidden_bytes))
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


def measure_seconds(call: Call) -> float:
    """Best of a few runs, after one that warms up."""
    call()
    best = float("inf")
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def measure_ratio(call: Call, reference: Call) -> float:
    """Seconds of a call over those of another, run in turn; best of a few runs each."""
    best = [float("inf"), float("inf")]
    for run in range(_TIMED_RUNS + 1):
        for which, timed in enumerate((call, reference)):
            start = time.perf_counter()
            timed()
            if run:  # the first one warms up
                best[which] = min(best[which], time.perf_counter() - start)
    return best[0] / best[1]
