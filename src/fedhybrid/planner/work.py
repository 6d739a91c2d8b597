"""Arithmetic and traffic of one operator call, from shapes alone, so that any device can price it."""

from __future__ import annotations

from fedhybrid.graph import ASK, Op, Ref, StepGraph, Value
from fedhybrid.opwork import WAITING, OpWork

__all__ = ["op_work"]

_KIND_BY_WORD = (
    # First match decides; the words are parts of ATen operator names.
    ("norm", "norm"),
    ("pool", "pool"),
    ("bernoulli", "random"),
    ("rand", "random"),
    ("dropout", "random"),
    ("softmax", "reduce"),
    ("nll_loss", "reduce"),
    ("sum", "reduce"),
    ("mean", "reduce"),
    ("clone", "copy"),
    ("copy", "copy"),
    ("stack", "copy"),
    ("cat", "copy"),
    ("embedding", "copy"),
)


def op_work(graph: StepGraph, op: Op) -> OpWork:
    """Kind, FLOPs and moved bytes of a call (views cost nothing and are never asked for).

    Multiply-adds count as two FLOPs; element-wise and reducing operators one FLOP an element read; each backward
    operator of a convolution or attention twice to two and a half times its forward.
    """
    inputs = [graph.values[v] for v in op.inputs]
    outputs = [graph.values[v] for v in op.outputs if v is not None]
    moved_bytes = sum(v.nbytes for v in inputs) + sum(v.nbytes for v in outputs)
    name = op.target.split(".")[1]
    if op.target == ASK:
        return OpWork(WAITING, 0.0, 0)
    if name == "convolution":
        weight, result = _arg(graph, op, 1), outputs[0]
        return OpWork(_conv_kind(op, 8, weight), 2.0 * result.numel * _fan_in(weight), moved_bytes)
    if name == "convolution_backward":
        grad, weight = _arg(graph, op, 0), _arg(graph, op, 2)
        wanted = sum(1 for flag in op.args[10][:2] if flag)
        return OpWork(_conv_kind(op, 9, weight), wanted * 2.0 * grad.numel * _fan_in(weight), moved_bytes)
    if name in ("mm", "addmm", "bmm", "baddbmm"):
        left = _arg(graph, op, 1 if name in ("addmm", "baddbmm") else 0)
        return OpWork("matmul", 2.0 * outputs[0].numel * left.shape[-1], moved_bytes)
    if "attention" in name:
        backward = "backward" in name
        query, key = (_arg(graph, op, i) for i in ((1, 2) if backward else (0, 1)))
        forward = 4.0 * query.numel * key.shape[-2]
        return OpWork("matmul", forward * (2.5 if backward else 1.0), moved_bytes)
    kind = next((kind for word, kind in _KIND_BY_WORD if word in name), "elementwise")
    return OpWork(kind, float(max((v.numel for v in (*inputs, *outputs)), default=0)), moved_bytes)


def _arg(graph: StepGraph, op: Op, position: int) -> Value:
    ref = op.args[position]
    assert isinstance(ref, Ref)
    return graph.values[ref.value]


def _fan_in(weight: Value) -> int:
    """Inputs that each output of a convolution sums over (the weight's second dimension is already per group)."""
    return weight.numel // weight.shape[0]


def _conv_kind(op: Op, groups_at: int, weight: Value) -> str:
    """Depthwise convolutions are bound by memory and get their own kind."""
    return "depthwise" if op.args[groups_at] > 1 and weight.shape[1] == 1 else "conv"
