"""Capture of a whole training step as one graph of ATen operators, and the rewrites that cost nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedhybrid.graph.asking import ASK, Asker, answering, asked_loss, exchanged_bytes
from fedhybrid.graph.batch import BatchSpec, batch_tensors, call_loss
from fedhybrid.graph.fingerprint import fingerprint
from fedhybrid.graph.ir import Op, Ref, Role, StepGraph, Storage, Value, map_refs, refs_of
from fedhybrid.graph.rewrite import rewrite
from fedhybrid.graph.torch_adapter import allocator_events, overload, peak_of
from fedhybrid.lazy import lazily

if TYPE_CHECKING:
    from fedhybrid.graph.capture import capture_step
else:
    __getattr__ = lazily(
        __name__,
        {
            "capture_step": "capture",
        },
    )

__all__ = [
    "ASK",
    "Asker",
    "BatchSpec",
    "Op",
    "Ref",
    "Role",
    "StepGraph",
    "Storage",
    "Value",
    "allocator_events",
    "answering",
    "asked_loss",
    "batch_tensors",
    "call_loss",
    "capture_step",
    "exchanged_bytes",
    "fingerprint",
    "map_refs",
    "overload",
    "peak_of",
    "refs_of",
    "rewrite",
]
