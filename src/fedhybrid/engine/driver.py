"""The in-process driver: tasks of a simulated fleet, in the order of a virtual clock."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import final

import numpy as np

from fedhybrid.engine.plans import PlanBook
from fedhybrid.engine.runtime import Workbench, steps_of
from fedhybrid.fleet import Fleet, VirtualClock
from fedhybrid.protocols import Method
from fedhybrid.records import ClientTask, Failure, IntArray, TaskEvent, Update
from fedhybrid.tree import total_bytes

__all__ = ["InProcessDriver"]


@dataclass(frozen=True, order=True)
class _Pending:
    """A submitted task; they end in the order of time, then of ticket."""

    at_s: float
    ticket: int
    duration_s: float = field(compare=False)
    task: ClientTask = field(compare=False)
    refusal: Failure | None = field(compare=False)


@final
class InProcessDriver:
    """Implements `protocols.Driver` without any process or network.

    When a task ends is known when it is submitted: bytes down over the downlink, steps x seconds of the client's
    program on its device, bytes up over the uplink. The training itself is done when its event is taken; since a task's
    result depends on nothing but the task, that order changes nothing. A task that cannot run ends as a `Failure`
    after its download: "out_of_memory" where the device cannot hold its step, "no_data" where the client has too little
    for one step. A result with a number that is not finite is the failure "non_finite": it ran and was sent, and is not
    used.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        budgets_bytes: IntArray,
        shards: tuple[IntArray, ...],
        method: Method,
        book: PlanBook,
        bench: Workbench,
        clock: VirtualClock,
    ) -> None:
        self._fleet, self._budgets_bytes, self._shards = fleet, budgets_bytes, shards
        self._method, self._book, self._bench, self._clock = method, book, bench, clock
        self._pending: list[_Pending] = []
        self._next_ticket = 0

    def clients(self) -> IntArray:
        """Every client: the simulated fleet is always reachable."""
        return np.arange(len(self._shards), dtype=np.int64)

    def submit(self, client: int, task: ClientTask) -> int:
        """Sends a task now; returns its ticket."""
        assert task.client == client, (client, task.client)
        device = self._fleet.tiers[self._fleet.tier[client]].device
        duration_s = total_bytes(task.weights) / device.downlink_bytes_per_s
        refusal = self._refusal(task)
        if refusal is None:
            steps = steps_of(task.work, len(self._shards[client]))
            duration_s += steps * self._book.program(device.name, task.plan).step_time_s
            duration_s += total_bytes(task.weights) / device.uplink_bytes_per_s
        ticket = self._next_ticket
        self._next_ticket += 1
        heapq.heappush(self._pending, _Pending(self._clock.now_s + duration_s, ticket, duration_s, task, refusal))
        return ticket

    def next_event(self, timeout_s: float | None = None) -> TaskEvent | None:
        """The next task to end; the clock moves there, or by `timeout_s` where none ends that soon."""
        until_s = math.inf if timeout_s is None else self._clock.now_s + timeout_s
        if not self._pending or self._pending[0].at_s > until_s:
            if timeout_s is not None:
                self._clock.advance_to(until_s)
            return None
        ended = heapq.heappop(self._pending)
        self._clock.advance_to(ended.at_s)
        result = ended.refusal or self._trained(ended.task)
        return TaskEvent(ticket=ended.ticket, at_s=ended.at_s, duration_s=ended.duration_s, result=result)

    def now(self) -> float:
        """Virtual seconds since the run began."""
        return self._clock.now_s

    def _refusal(self, task: ClientTask) -> Failure | None:
        budget_bytes, needed_bytes = int(self._budgets_bytes[task.client]), self._book.needed_bytes(task.plan)
        if needed_bytes > budget_bytes:
            what = "the unplanned step" if task.plan is None else f"plan {task.plan}"
            detail = f"{what} needs {needed_bytes:,} bytes, the budget is {budget_bytes:,}"
            return _failure(task, "out_of_memory", detail)
        num_samples = len(self._shards[task.client])
        if steps_of(task.work, num_samples) == 0:
            detail = f"{num_samples} samples make no batch of {task.work.batch_size}"
            return _failure(task, "no_data", detail)
        return None

    def _trained(self, task: ClientTask) -> Update | Failure:
        device = self._fleet.tiers[self._fleet.tier[task.client]].device
        program = self._book.program(device.name, task.plan)
        update = self._bench.run(self._method, task, self._shards[task.client], program)
        bad = [name for name, tensor in update.weights.items() if not bool(tensor.isfinite().all())]
        if bad or not math.isfinite(update.loss_mean + update.squared_loss_sum):
            where = f"{bad[0]} and {len(bad) - 1} more tensors" if len(bad) > 1 else bad[0] if bad else "the loss"
            return _failure(task, "non_finite", f"{where} became infinite or NaN; a lower train.lr may help", update)
        return update


def _failure(task: ClientTask, kind: str, detail: str, ran: Update | None = None) -> Failure:
    return Failure(client=task.client, round_index=task.round_index, kind=kind, detail=detail, ran=ran)
