"""What packing costs, and the problem with every pack that a plan may take.

A storage is packed after its last use in the forward pass and unpacked right before its first in the backward pass.
Loss-free packs are always offered: masks, and the noise of dropout, which was drawn at random and must never be drawn
again, take one bit an element; indices take as few bytes as their range needs. Lossy codecs and files are asked for
(actions "encode" and "offload").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from fedhybrid.codecs import Codec
from fedhybrid.graph import Value
from fedhybrid.opwork import OpWork
from fedhybrid.planner.packable import LOSSY, OFFLOAD, Packable
from fedhybrid.planner.problem import FIRST_PACK, Form, Kind, Pack, PlanOp, Problem
from fedhybrid.planner.scratch import Call, measure_bytes, measure_seconds, scratch

__all__ = ["PackCost", "with_packs"]


@dataclass(frozen=True)
class PackCost:
    """What packing and unpacking one storage with one codec costs: (seconds, workspace bytes) each."""

    encode: tuple[float, int]
    decode: tuple[float, int]


def with_packs(
    problem: Problem,
    actions: Sequence[str],
    *,
    codecs: Sequence[str],
    packable: Packable,
    errors: Mapping[tuple[int, str], float],
    op_seconds: Callable[[OpWork], float] | None,
    known: dict[str, PackCost],
) -> Problem:
    """The problem with every pack that the actions allow.

    Args:
        problem: Without packs.
        actions: "encode" and "offload" add to the loss-free packs.
        codecs: What "encode" may choose from.
        packable: Of the problem's graph.
        errors: Relative gradient error of each lossy pack, by (storage, codec); those without are not offered.
        op_seconds: Prices codecs as copies of their bytes on another device; without it they are timed here.
        known: Costs measured before, by layout and codec; those measured now are added.
    """
    whole = packable.whole
    wanted = [(s, c) for s, c in packable.packs(problem, actions, codecs) if c not in LOSSY or (s, c) in errors]
    made = {(s, c): packable.codec(s, c) for s, c in wanted if c != OFFLOAD}
    _measure([(codec, whole[s]) for (s, _), codec in made.items()], known, timed=op_seconds is None)
    nbytes, uid = list(problem.nbytes), len(problem.calls)
    packs: list[Pack] = []
    encodes: dict[tuple[int, int], PlanOp] = {}
    decodes: dict[tuple[int, int], PlanOp] = {}
    options: dict[int, int] = {}
    for storage, name in wanted:
        option = options[storage] = options.get(storage, FIRST_PACK - 1) + 1
        value, codec = whole[storage], made.get((storage, name))
        packed_bytes = 0 if codec is None else codec.encoded_bytes(value.shape, value.dtype)
        cost = _file_cost(value.nbytes) if codec is None else known[_key(codec, value, timed=op_seconds is None)]
        if op_seconds is not None:
            copied = op_seconds(OpWork("copy", float(value.numel), value.nbytes + packed_bytes))
            cost = PackCost((copied, cost.encode[1]), (copied, cost.decode[1]))
        stored, number = len(nbytes), len(packs)
        nbytes.append(packed_bytes)
        error = errors.get((storage, name), 0.0)
        packs.append(Pack(storage, option, name, stored, packed_bytes, error))
        for kind, calls, read, born, (seconds, workspace_bytes) in (
            (Kind.ENCODE, encodes, storage, stored, cost.encode),
            (Kind.DECODE, decodes, stored, storage, cost.decode),
        ):
            form = Form(1, seconds, workspace_bytes, ())
            calls[storage, option] = PlanOp(kind, number, uid, (read,), (), (born,), (form,))
            uid += 1
    fresh = [s for s in options if s not in set(problem.candidates)]
    candidates = sorted([*problem.candidates, *fresh], key=lambda s: (-nbytes[s], s))
    return replace(problem, nbytes=nbytes, packs=packs, encodes=encodes, decodes=decodes, candidates=candidates)


_FILE_BYTES_PER_S = 1e9  # of the page cache; a slow disk shows when steps are measured, not here


def _file_cost(nbytes: int) -> PackCost:
    return PackCost((nbytes / _FILE_BYTES_PER_S, 0), (nbytes / _FILE_BYTES_PER_S, 0))


def _key(codec: Codec, value: Value, *, timed: bool) -> str:
    """Equal for packs that cost the same; a codec's text names its options, gates among them."""
    return f"{codec!r} {value.shape} {value.stride} {value.dtype}{'' if timed else ', not timed'}"


def _measure(wanted: Sequence[tuple[Codec, Value]], known: dict[str, PackCost], *, timed: bool) -> None:
    """Adds what is not known yet: every distinct encode and decode, one at a time on scratch tensors."""
    distinct = {_key(codec, value, timed=timed): (codec, value) for codec, value in wanted}
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
    if codec.name == "bits":
        return (tensor > 0).to(value.dtype)
    if codec.name == "narrow":
        return tensor.zero_()
    gates = getattr(codec, "gates", None)
    return tensor.clamp_(*gates) if gates is not None and getattr(codec, "clamped", False) else tensor


def _encode_call(codec: Codec, value: Value) -> Call:
    tensor = _sample(codec, value)
    return lambda: codec.encode(tensor)


def _decode_call(codec: Codec, value: Value) -> Call:
    code = codec.encode(_sample(codec, value))
    return lambda: codec.decode(code, value.shape, value.stride, value.dtype)
