"""What operators cost when they run in chunks, and whether they then still give the same bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from fedhybrid.graph import Op, StepGraph
from fedhybrid.planner.calls import signature
from fedhybrid.planner.costs import CallCost, SplitCost
from fedhybrid.planner.inplace import split_targets
from fedhybrid.planner.scratch import Call, Fill, birth_bytes, measure_bytes, measure_ratio, scratch_arguments
from fedhybrid.planner.splits import SPLITS

__all__ = ["profile_splits"]

# How many chunks are tried: the memory of a chunk falls with their number, the price of many small calls rises.
_CHUNKS = (4, 16)

# Operators that hold less than this share of what the largest one holds never stand at a peak that matters.
_LEAST_SHARE = 0.3


def profile_splits(
    ops: Iterable[tuple[StepGraph, Op]], calls: Mapping[str, CallCost], fills: Mapping[str, Fill], *, timed: bool
) -> dict[str, tuple[SplitCost, ...]]:
    """Costs of the chunked forms of the largest operators, by the whole operator's signature.

    Args:
        ops: Every call of the program with its graph.
        calls: Their costs as whole calls.
        fills: How to fill scratch tensors for a signature.
        timed: Measure seconds too; else they are 0 until `CostTable.priced`.
    """
    distinct = {signature(graph, op): (graph, op) for graph, op in ops}
    held = {key: _held_bytes(graph, op) + calls[key].workspace_bytes for key, (graph, op) in distinct.items()}
    least = _LEAST_SHARE * max(held.values(), default=0)
    wanted: list[tuple[str, int]] = []
    for key, (graph, op) in distinct.items():
        if op.target in SPLITS and held[key] >= least and key in fills:
            most = SPLITS[op.target].most_chunks(op.args, op.kwargs, graph.values)
            wanted += [(key, chunks) for chunks in _CHUNKS if 1 < chunks <= most]
    makers = [partial(_make, *distinct[key], fills[key], chunks) for key, chunks in wanted]
    births = [birth_bytes(*distinct[key]) for key, _ in wanted]
    measured = measure_bytes(list(zip(makers, births, strict=True)))
    found: dict[str, list[SplitCost]] = {}
    for (key, chunks), make, (workspace_bytes, _) in zip(wanted, makers, measured, strict=True):
        graph, op = distinct[key]
        takes_over = bool(split_targets(graph, op))
        if workspace_bytes < calls[key].workspace_bytes or takes_over:
            exact = SPLITS[op.target].exact or _same_bits(graph, op, fills[key], chunks)
            # Timed in turn with the whole call: machines are noisy, and it is the ratio that decides.
            ratio = measure_ratio(make(), _make_whole(graph, op, fills[key])) if timed else 0.0
            seconds = ratio * calls[key].seconds
            found.setdefault(key, []).append(SplitCost(chunks, seconds, workspace_bytes, exact))
    return {key: tuple(costs) for key, costs in found.items()}


def _held_bytes(graph: StepGraph, op: Op) -> int:
    storages = {graph.storage_of(v) for v in (*op.inputs, *(v for v in op.outputs if v is not None))}
    return sum(graph.storages[s].nbytes for s in storages)


def _make(graph: StepGraph, op: Op, fill: Fill, chunks: int) -> Call:
    args, kwargs = scratch_arguments(graph, op, fill)
    return lambda: SPLITS[op.target].func(*args, **kwargs, chunks=chunks)


def _make_whole(graph: StepGraph, op: Op, fill: Fill) -> Call:
    args, kwargs = scratch_arguments(graph, op, fill)
    return lambda: op.func(*args, **kwargs)


def _same_bits(graph: StepGraph, op: Op, fill: Fill, chunks: int) -> bool:
    args, kwargs = scratch_arguments(graph, op, fill)
    whole, parts = op.func(*args, **kwargs), SPLITS[op.target].func(*args, **kwargs, chunks=chunks)
    pairs = zip(whole, parts, strict=False) if isinstance(whole, (tuple, list)) else [(whole, parts)]
    # One of the two may make what nobody wants (`None` among the outputs), and the other not.
    wanted = [pair for value, pair in zip(op.outputs, pairs, strict=False) if value is not None]
    return all(torch.equal(a, b) for a, b in wanted if isinstance(a, Tensor))
