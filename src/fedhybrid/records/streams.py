"""Classes that come one task after the other: which of them is on, as engine and methods see it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StreamTask"]


@dataclass(frozen=True, kw_only=True)
class StreamTask:
    """One task of a class-incremental stream, in one of its rounds.

    Attributes:
        index: Counts from 0.
        count: Tasks of the stream.
        classes: Those of the task, by their numbers in the data set.
        seen: Those of all tasks so far, this one's last, in the order in which they came.
        begins: Whether this is the task's first round.
        ends: Whether this is its last one; of the stream's last task, the last that it must have (a run may go on).
    """

    index: int
    count: int
    classes: tuple[int, ...]
    seen: tuple[int, ...]
    begins: bool
    ends: bool
