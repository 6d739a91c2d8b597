"""Whom a policy considers at all: by what the device's memory can hold."""

from __future__ import annotations

import numpy as np

from fedhybrid.protocols import CandidateView
from fedhybrid.records import IntArray

__all__ = ["MEMORY_GATES", "admitted_rows"]

MEMORY_GATES = ("none", "planned", "unplanned")


def admitted_rows(candidates: CandidateView, memory_gate: str) -> IntArray:
    """Rows of the candidates that pass, ascending.

    Args:
        candidates: Only the columns that the gate needs are touched.
        memory_gate: "none" admits everybody; "planned" those that can do their task as they would run it, under a plan
            where the method has plans (finite `round_s`); "unplanned" those that hold the step without any plan.
    """
    if memory_gate == "planned":
        return np.flatnonzero(np.isfinite(candidates.round_s))
    if memory_gate == "unplanned":
        return np.flatnonzero(candidates.budget_bytes >= candidates.unplanned_bytes)
    return np.arange(len(candidates.client))
