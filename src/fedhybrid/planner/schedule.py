"""Decisions -> the exact order of calls, which storage instance each reads, and when each instance dies.

The timeline is computed on this order and the executor runs this order: that is why predicted equals measured.
An *instance* is one life of a storage: a dropped storage that is made again gets a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fedhybrid.planner.problem import Kind, Problem
from fedhybrid.planner.simulator import Simulator

__all__ = ["Schedule", "Step", "build_schedule", "schedule_of"]


class Step(NamedTuple):
    """One call. `call` is an index into the graph's ops, the updates or the packs, as its kind says.

    `reads` and `births` are instances; `in_place` is the instance whose memory the first birth takes over, or -1.
    """

    kind: Kind
    call: int
    reads: tuple[int, ...]
    births: tuple[int, ...]
    in_place: int
    chunks: int
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
        extra_seconds: What the decisions cost.
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


def build_schedule(problem: Problem, decisions: Mapping[int, int]) -> Schedule:
    """The order of calls under `decisions` (subject -> option; what is not mentioned is kept and runs whole)."""
    simulator = Simulator(problem)
    simulator.update(decisions)
    return schedule_of(simulator)


def schedule_of(simulator: Simulator) -> Schedule:
    """Writes down, call by call, what a simulator stands for, and adds up the bytes once more, slowly."""
    problem = simulator.problem
    current = [-1] * len(problem.nbytes)  # instance of each storage that can be read now
    storage_of: list[int] = []
    last: list[int] = []
    drafts: list[tuple[Kind, int, tuple[int, ...], tuple[int, ...], tuple[int, ...], int, int, float]] = []
    backward_at = 0

    def give_birth(storage: int) -> int:
        storage_of.append(storage)
        last.append(len(drafts))
        return len(storage_of) - 1

    for position in range(len(problem.ops)):
        if position == problem.backward_at:
            backward_at = len(drafts)
        for call in simulator.calls(position):
            op = call.op
            form = op.forms[simulator.form_of(op)]
            reads = tuple([current[s] for s in op.reads])
            for instance in reads:
                last[instance] = len(drafts)
            births = []
            for storage in op.births:
                births.append(instance := give_birth(storage))
                if storage in call.births:
                    current[storage] = instance
            drafts.append(
                (op.kind, op.op, reads, tuple(births), form.in_place, form.chunks, form.workspace_bytes, form.seconds)
            )
        for index in simulator.updates(position):
            update = problem.updates[index]
            grads = (current[update.grad],) if update.grad >= 0 else ()
            for instance in grads:
                last[instance] = len(drafts)
            drafts.append((Kind.UPDATE, index, grads, (), (), 1, update.workspace_bytes, update.seconds))
    if problem.backward_at == len(problem.ops):
        backward_at = len(drafts)
    for storage in problem.outputs:
        last[current[storage]] = len(drafts)
    steps = []
    born = [0] * len(storage_of)
    for at, (kind, number, reads, births_at, targets, chunks, workspace_bytes, seconds) in enumerate(drafts):
        for instance in births_at:
            born[instance] = at
        taken = (i for target in targets for i in reads if storage_of[i] == target and last[i] == at)
        steps.append(Step(kind, number, reads, births_at, next(taken, -1), chunks, workspace_bytes, seconds))
    tops = _tops(steps, storage_of, last, problem)
    return Schedule(steps, storage_of, born, last, tops, simulator.extra_seconds, backward_at)


def _tops(steps: list[Step], storage_of: list[int], last: list[int], problem: Problem) -> list[int]:
    nbytes = problem.nbytes
    freed = [0] * (len(steps) + 1)
    for instance, position in enumerate(last):
        freed[position] += nbytes[storage_of[instance]]
    live, tops = problem.held_bytes, []
    for position, step in enumerate(steps):
        fresh = sum([nbytes[storage_of[i]] for i in step.births])
        taken = nbytes[storage_of[step.in_place]] if step.in_place >= 0 else 0
        tops.append(live + fresh - taken + step.workspace_bytes)
        live += fresh - freed[position]
    return tops
