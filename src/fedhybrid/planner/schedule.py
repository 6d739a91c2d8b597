"""Decisions -> the exact order of calls, which storage instance each reads, and when each instance dies.

The timeline is computed on this order and the executor runs this order: that is why predicted equals measured.
An *instance* is one life of a storage: a dropped storage that is made again gets a new one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from fedhybrid.planner.problem import PlanOp, Problem

__all__ = ["Decision", "Kind", "Schedule", "Step", "build_schedule"]

# A transient storage stays if the backward pass reads it again within so many ops.
_TRANSIENT_WINDOW = 4


class Decision(IntEnum):
    """What happens to a storage between the forward and the backward pass."""

    KEEP = 0
    RECOMPUTE = 1  # dropped; made again at its first backward use; stays until its last
    TRANSIENT = 2  # as RECOMPUTE, but dropped and made again whenever the next use is far


class Kind(IntEnum):
    """What a step of a schedule is."""

    OP = 0
    REPLAY = 1
    UPDATE = 2


class Step(NamedTuple):
    """One call. `call` is an index into `graph.ops`, or into the updates.

    `reads` and `births` are instances; `in_place` is the instance whose memory the birth takes over, or -1.
    """

    kind: Kind
    call: int
    reads: tuple[int, ...]
    births: tuple[int, ...]
    in_place: int
    workspace_bytes: int
    seconds: float


@dataclass(frozen=True)
class Schedule:
    """A whole step in order.

    Attributes:
        steps: The calls.
        storage_of: Storage of each instance.
        born: Position of each instance's birth.
        last: Position after which each instance dies; `len(steps)` if it outlives the step.
        tops: Bytes live at the worst moment of each call, resident bytes excluded.
        extra_seconds: What the replays cost.
        backward_at: Position of the first step of the backward pass.
    """

    steps: list[Step]
    storage_of: list[int]
    born: list[int]
    last: list[int]
    tops: list[int]
    extra_seconds: float
    backward_at: int

    @property
    def peak_bytes(self) -> int:
        """Largest of `tops`."""
        return max(self.tops)

    @property
    def peak_at(self) -> int:
        """Position of the (first) peak."""
        return self.tops.index(self.peak_bytes)


def build_schedule(problem: Problem, decisions: Mapping[int, Decision]) -> Schedule:
    """The order of calls under `decisions` (storages not mentioned are kept)."""
    return _Builder(problem, decisions).build()


class _Builder:
    def __init__(self, problem: Problem, decisions: Mapping[int, Decision]) -> None:
        self.problem, self.decisions = problem, decisions
        self.current = [-1] * len(problem.nbytes)  # instance of each storage that can be read now
        self.storage_of: list[int] = []
        self.calls: list[tuple[Kind, PlanOp, tuple[int, ...], tuple[int, ...]]] = []
        self.last: list[int] = []
        self.param_last: dict[int, int] = {}
        self.transient: list[int] = []
        self.extra_seconds = 0.0

    def build(self) -> Schedule:
        problem = self.problem
        for op in problem.ops[: problem.backward_at]:
            self._call(Kind.OP, op)
        backward_at = len(self.calls)
        for storage in problem.intermediates:
            if storage not in self.decisions:
                self.current[storage] = -1
        for storage, decision in self.decisions.items():
            if decision:
                self.current[storage] = -1
        for position in range(problem.backward_at, len(problem.ops)):
            op = problem.ops[position]
            for storage in op.reads:
                if self.current[storage] < 0:
                    self._make_again(storage)
            self._call(Kind.OP, op)
            if self.transient:
                self._drop_transients(position)
        return self._finish(backward_at)

    def _call(self, kind: Kind, op: PlanOp) -> None:
        position, current, last = len(self.calls), self.current, self.last
        reads = tuple([current[s] for s in op.reads])
        for instance in reads:
            last[instance] = position
        for param in op.params:
            self.param_last[param] = position
        births = []
        for storage in op.births:
            instance = len(self.storage_of)
            self.storage_of.append(storage)
            last.append(position)
            births.append(instance)
            if kind is Kind.OP or current[storage] < 0:
                current[storage] = instance
                if kind is Kind.REPLAY and self.decisions.get(storage) is not Decision.RECOMPUTE:
                    self.transient.append(storage)
        self.calls.append((kind, op, reads, tuple(births)))

    def _make_again(self, wanted: int) -> None:
        """Replays what `wanted` is made of, from the nearest storages that can be read.

        Without recursion, because chains are long.
        """
        stack = [wanted]
        while stack:
            storage = stack[-1]
            if self.current[storage] >= 0:
                stack.pop()
                continue
            replay = self.problem.replays[storage]
            missing = [s for s in replay.reads if self.current[s] < 0]
            if missing:
                stack.extend(missing)
                continue
            self._call(Kind.REPLAY, replay)
            self.extra_seconds += replay.seconds
            stack.pop()

    def _drop_transients(self, position: int) -> None:
        staying = []
        for storage in self.transient:
            uses = self.problem.uses.get(storage, ())
            following = bisect_right(uses, position)
            if following < len(uses) and uses[following] - position <= _TRANSIENT_WINDOW:
                staying.append(storage)
            else:
                self.current[storage] = -1
        self.transient = staying

    def _finish(self, backward_at: int) -> Schedule:
        """Places each update after its gradient's and its parameter's last reader, then adds up the bytes."""
        problem, last = self.problem, self.last
        after: dict[int, list[int]] = {}
        for update in problem.updates:
            ready = last[self.current[update.grad]] if update.grad >= 0 else 0
            if problem.hold_gradients:
                ready = len(self.calls) - 1
            after.setdefault(max(ready, self.param_last.get(update.param, 0)), []).append(update.index)
        shift, place = 0, []
        for position in range(len(self.calls)):
            place.append(position + shift)
            shift += len(after.get(position, ()))
        new_last = [place[p] for p in last]
        # Their last reader by `last` is not their end: the update or the caller still comes.
        reserved = {*problem.outputs, *(update.grad for update in problem.updates)}
        steps: list[Step] = []
        for position, (kind, op, reads, births) in enumerate(self.calls):
            in_place = -1
            for storage in op.in_place:
                instance = next(i for i in reads if self.storage_of[i] == storage)
                if new_last[instance] == len(steps) and storage not in reserved:
                    in_place = instance
                    break
            steps.append(Step(kind, op.op, reads, births, in_place, op.workspace_bytes, op.seconds))
            for index in after.get(position, ()):
                update = problem.updates[index]
                grads: tuple[int, ...] = (self.current[update.grad],) if update.grad >= 0 else ()
                for instance in grads:
                    new_last[instance] = len(steps)
                steps.append(Step(Kind.UPDATE, index, grads, (), -1, update.workspace_bytes, update.seconds))
        for storage in problem.outputs:
            new_last[self.current[storage]] = len(steps)
        born = [0] * len(self.storage_of)
        for position, step in enumerate(steps):
            for instance in step.births:
                born[instance] = position
        tops = _tops(steps, self.storage_of, new_last, problem)
        return Schedule(steps, self.storage_of, born, new_last, tops, self.extra_seconds, place[backward_at])


def _tops(steps: list[Step], storage_of: list[int], last: list[int], problem: Problem) -> list[int]:
    nbytes = problem.nbytes
    freed = [0] * (len(steps) + 1)
    for instance, position in enumerate(last):
        freed[position] += nbytes[storage_of[instance]]
    live, tops = problem.held_bytes, []
    for position, (_, _, _, births, in_place, workspace_bytes, _) in enumerate(steps):
        fresh = sum([nbytes[storage_of[i]] for i in births])
        if in_place >= 0:
            tops.append(live + workspace_bytes)
        else:
            tops.append(live + fresh + workspace_bytes)
        live += fresh - freed[position]
    return tops
