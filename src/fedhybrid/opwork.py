"""What one operator costs, in terms that hold on every device: its kind, its arithmetic, the bytes that it moves."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["OP_KINDS", "WAITING", "OpWork"]

# Kinds whose speed differs between devices by more than their FLOPs and bytes explain.
OP_KINDS = ("conv", "depthwise", "matmul", "norm", "pool", "elementwise", "reduce", "copy", "random", "optimizer")

# What is no work of the device's own: it waits for somebody else, whose time is counted where that one works.
WAITING = "waiting"


@dataclass(frozen=True)
class OpWork:
    """One operator call. `flops` counts a multiply-add as two; `moved_bytes` is read plus written once each."""

    kind: str
    flops: float
    moved_bytes: int
