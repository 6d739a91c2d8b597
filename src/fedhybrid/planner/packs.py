"""Which storages may wait for the backward pass in a packed form, and what that costs.

A storage is packed after its last use in the forward pass and unpacked right before its first in the backward pass.
Loss-free packs are always offered: masks, and the noise of dropout, which was drawn at random and must never be drawn
again, take one bit an element. Lossy codecs and files are asked for (actions "encode" and "offload").

Never packed with loss: anything but activations of some size, and what a loss or a softmax saved for itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from fedhybrid.codecs import CODECS, Codec
from fedhybrid.graph import Ref, Role, StepGraph, Value
from fedhybrid.opwork import OpWork
from fedhybrid.planner.problem import FIRST_PACK, Form, Kind, Pack, PlanOp, Problem
from fedhybrid.planner.scratch import Call, measure_bytes, measure_seconds, scratch

__all__ = ["LOSSY", "OFFLOAD", "PackCost", "codec_of", "packable", "with_packs"]

OFFLOAD = "offload"  # the pseudo-codec of a file: no memory at all
LOSSY = ("affine-8", "affine-4")

# Backward operators whose second argument decides by comparison alone, and the numbers that it is compared with.
_GATES: dict[str, Callable[[Sequence[object]], tuple[float, float]]] = {
    "aten.threshold_backward.default": lambda args: (_number(args, 2, 0.0), math.inf),
    "aten.hardtanh_backward.default": lambda args: (_number(args, 2, -1.0), _number(args, 3, 1.0)),
    "aten.leaky_relu_backward.default": lambda args: (0.0, math.inf),
    "aten.hardswish_backward.default": lambda args: (-3.0, 3.0),
    "aten.hardsigmoid_backward.default": lambda args: (-3.0, 3.0),
}

# What these read must come back exactly: probabilities and statistics, where a small change is a large one.
_EXACT_READERS = ("softmax_backward", "nll_loss", "cross_entropy", "cdist", "norm_backward", "max_pool")
_NORM_INPUTS = ("native_batch_norm_backward", "native_layer_norm_backward", "native_group_norm_backward")

_LEAST_BYTES = 1 << 14  # smaller tensors are not worth a call


@dataclass(frozen=True)
class PackCost:
    """What packing and unpacking one storage with one codec costs: (seconds, workspace bytes) each."""

    encode: tuple[float, int]
    decode: tuple[float, int]


def _number(args: Sequence[object], position: int, default: float) -> float:
    given = args[position] if position < len(args) else default
    return float(given) if isinstance(given, (int, float)) else default


def codec_of(problem: Problem, pack: Pack) -> Codec:
    """The codec of a pack, with the gates that its storage's readers need."""
    return _codec(problem.graph, pack.storage, pack.codec)


def _codec(graph: StepGraph, storage: int, name: str) -> Codec:
    make = CODECS[name]
    if name not in LOSSY:
        return make()
    return make(gates=_gates(graph, storage))


def _gates(graph: StepGraph, storage: int) -> tuple[float, float] | None:
    found = set()
    for op in graph.ops[graph.backward_at :]:
        if op.target in _GATES and isinstance(op.args[1], Ref) and graph.storage_of(op.args[1].value) == storage:
            found.add(_GATES[op.target](op.args))
    if not found:
        return None
    return min(low for low, _ in found), max(high for _, high in found)


def packable(problem: Problem, actions: Sequence[str]) -> list[tuple[int, str]]:
    """(storage, codec) of every pack that the actions allow."""
    graph = problem.graph
    two_valued, unsuitable = _two_valued(graph), _written_oddly(graph)
    exact, whole = _read_exactly(graph), _whole_values(graph)
    born = {storage for op in problem.ops[: problem.backward_at] for storage in op.births}
    found = []
    for storage in sorted(born & problem.uses.keys() & whole.keys()):
        value = whole[storage]
        if storage in unsuitable or storage in problem.outputs or graph.storages[storage].nbytes < _LEAST_BYTES:
            continue
        if storage in two_valued or value.dtype == torch.bool:
            found.append((storage, "bits"))
        elif "encode" in actions and value.dtype.is_floating_point and storage not in exact:
            found += [
                (storage, name) for name in LOSSY if _codec(graph, storage, name).accepts(value.shape, value.dtype)
            ]
        if "offload" in actions:
            found.append((storage, OFFLOAD))
    return found


def _whole_values(graph: StepGraph) -> dict[int, Value]:
    """The first value of each temporary storage that fills it."""
    return {
        v.storage: v
        for v in graph.values
        if v.base is None and graph.storages[v.storage].role is Role.TEMP and graph.covers_storage(v.index)
    }


def _written_oddly(graph: StepGraph) -> set[int]:
    """Storages that the backward pass writes (what is packed would be the old content), or that are written in part."""
    found: set[int] = set()
    for position, op in enumerate(graph.ops):
        for value in op.writes:
            if position >= graph.backward_at or not graph.covers_storage(value):
                found.add(graph.storage_of(value))
    return found


def _two_valued(graph: StepGraph) -> set[int]:
    """Storages whose elements are 0 or one other number: random masks, also after scaling by a number."""
    found: set[int] = set()
    for op in graph.ops[: graph.backward_at]:
        name = op.target.split(".")[1]
        out = op.outputs[0] if op.outputs else None
        if out is None or not graph.covers_storage(out):
            continue
        if name in ("bernoulli", "bernoulli_"):
            found.add(graph.storage_of(out))
        elif name in ("div", "mul", "div_", "mul_") and isinstance(op.args[0], Ref) and not isinstance(op.args[1], Ref):
            if graph.storage_of(op.args[0].value) in found:
                found.add(graph.storage_of(out))
        elif op.writes:
            found.discard(graph.storage_of(out))
    return found


def _read_exactly(graph: StepGraph) -> set[int]:
    found: set[int] = set()
    for op in graph.ops:
        name = op.target.split(".")[1]
        inputs = list(op.inputs)
        if name in _NORM_INPUTS:
            inputs = inputs[2:]  # the gradient and the input may be inexact, the statistics may not
        elif not any(word in name for word in _EXACT_READERS):
            continue
        found.update(graph.storage_of(v) for v in inputs)
    return found


def with_packs(
    problem: Problem,
    actions: Sequence[str],
    *,
    errors: Mapping[tuple[int, str], float],
    op_seconds: Callable[[OpWork], float] | None,
    known: dict[str, PackCost],
) -> Problem:
    """The problem with every pack that the actions allow.

    Args:
        problem: Without packs.
        actions: "encode" and "offload" add to the loss-free packs.
        errors: Relative gradient error of each lossy pack, by (storage, codec); those without are not offered.
        op_seconds: Prices codecs as copies of their bytes on another device; without it they are timed here.
        known: Costs measured before, by layout and codec; those measured now are added.
    """
    graph, whole = problem.graph, _whole_values(problem.graph)
    wanted = [(s, c) for s, c in packable(problem, actions) if c not in LOSSY or (s, c) in errors]
    codecs = {(s, c): _codec(graph, s, c) for s, c in wanted if c != OFFLOAD}
    _measure([(codec, whole[s]) for (s, _), codec in codecs.items()], known, timed=op_seconds is None)
    nbytes, uid = list(problem.nbytes), len(problem.calls)
    packs: list[Pack] = []
    encodes: dict[tuple[int, int], PlanOp] = {}
    decodes: dict[tuple[int, int], PlanOp] = {}
    options: dict[int, int] = {}
    for storage, name in wanted:
        option = options[storage] = options.get(storage, FIRST_PACK - 1) + 1
        value, codec = whole[storage], codecs.get((storage, name))
        packed_bytes = 0 if codec is None else codec.encoded_bytes(value.shape, value.dtype)
        cost = _file_cost(value.nbytes) if codec is None else known[_key(codec, value)]
        if op_seconds is not None:
            copied = op_seconds(OpWork("copy", float(value.numel), value.nbytes + packed_bytes))
            cost = PackCost((copied, cost.encode[1]), (copied, cost.decode[1]))
        stored, number = len(nbytes), len(packs)
        nbytes.append(packed_bytes)
        error = errors.get((storage, name), 0.0)
        packs.append(Pack(storage, option, name, stored, packed_bytes, error))
        for kind, made, read, born, (seconds, workspace_bytes) in (
            (Kind.ENCODE, encodes, storage, stored, cost.encode),
            (Kind.DECODE, decodes, stored, storage, cost.decode),
        ):
            form = Form(1, seconds, workspace_bytes, ())
            made[storage, option] = PlanOp(kind, number, uid, (read,), (), (born,), (form,))
            uid += 1
    fresh = [s for s in options if s not in set(problem.candidates)]
    candidates = sorted([*problem.candidates, *fresh], key=lambda s: (-nbytes[s], s))
    return replace(problem, nbytes=nbytes, packs=packs, encodes=encodes, decodes=decodes, candidates=candidates)


_FILE_BYTES_PER_S = 1e9  # of the page cache; a slow disk shows when steps are measured, not here


def _file_cost(nbytes: int) -> PackCost:
    return PackCost((nbytes / _FILE_BYTES_PER_S, 0), (nbytes / _FILE_BYTES_PER_S, 0))


def _key(codec: Codec, value: Value) -> str:
    """Equal for packs that cost the same; a codec's text names its options, gates among them."""
    return f"{codec!r} {value.shape} {value.stride} {value.dtype}"


def _measure(wanted: Sequence[tuple[Codec, Value]], known: dict[str, PackCost], *, timed: bool) -> None:
    """Adds what is not known yet: every distinct encode and decode, one at a time on scratch tensors."""
    distinct = {_key(codec, value): (codec, value) for codec, value in wanted}
    distinct = {key: pair for key, pair in distinct.items() if key not in known}
    if not distinct:
        return
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        makers: list[tuple[Callable[[], Call], int]] = []
        for codec, value in distinct.values():
            for _ in range(2):  # what a first call allocates once and for all is no workspace
                code = codec.encode(_sample(codec, value))
                codec.decode(code, value.shape, value.stride, value.dtype)
            makers.append((partial(_encode_call, codec, value), code.numel()))
            makers.append((partial(_decode_call, codec, value), value.nbytes))
        measured = measure_bytes(makers)
        seconds = [measure_seconds(make()) if timed else 0.0 for make, _ in makers]
    for number, key in enumerate(distinct):
        known[key] = PackCost(
            (seconds[2 * number], measured[2 * number][0]), (seconds[2 * number + 1], measured[2 * number + 1][0])
        )


def _sample(codec: Codec, value: Value) -> torch.Tensor:
    tensor = scratch(value)
    return (tensor > 0).to(value.dtype) if codec.name == "bits" else tensor


def _encode_call(codec: Codec, value: Value) -> Call:
    tensor = _sample(codec, value)
    return lambda: codec.encode(tensor)


def _decode_call(codec: Codec, value: Value) -> Call:
    code = codec.encode(_sample(codec, value))
    return lambda: codec.decode(code, value.shape, value.stride, value.dtype)
