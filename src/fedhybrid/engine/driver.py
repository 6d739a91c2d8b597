"""The in-process driver: tasks of a simulated fleet, in the order of a virtual clock."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import final

from fedhybrid.data import Shards
from fedhybrid.engine.faults import damaged
from fedhybrid.engine.journey import Journey, JourneyPlanner, failure_of
from fedhybrid.engine.labour import Job, Labour
from fedhybrid.engine.plans import PlanBook
from fedhybrid.engine.receiving import received
from fedhybrid.engine.states import ClientStates
from fedhybrid.engine.traffic import Delivery, Traffic
from fedhybrid.fleet import Fleet, VirtualClock, free_clients
from fedhybrid.records import ClientTask, Failure, IntArray, TaskCost, TaskEvent, Update

__all__ = ["InProcessDriver", "PendingTask"]


@dataclass(frozen=True, kw_only=True)
class PendingTask:
    """A task that has not ended: all that is needed to go on with it after a stop."""

    ticket: int
    start_s: float
    task: ClientTask


@dataclass(frozen=True, order=True)
class _Stage:
    """The next thing to happen to a task, in the order of time, then of ticket."""

    at_s: float
    ticket: int
    journey: Journey = field(compare=False)
    failure: Failure | None = field(default=None, compare=False)
    update: Update | None = field(default=None, compare=False)
    bytes_up: int = field(default=0, compare=False)
    answered_bytes: int = field(default=0, compare=False)  # to the client, in the middle of its task

    @property
    def ends(self) -> bool:
        """Whether the task ends here; else its computing does, and the upload follows."""
        return self.failure is not None or self.update is not None


@final
class InProcessDriver:
    """Implements `protocols.Driver` without any process or network.

    What a task goes through is known when it is submitted, up to its upload: bytes down over the downlink, steps along
    the memory that its device has left, what fails on the way. The training itself is done when its computing ends on
    the virtual clock; the exact bytes of its upload follow from it, and they say when it arrives. Since a task's result
    depends on nothing but the task and its client, that order changes nothing.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        planner: JourneyPlanner,
        shards: Shards,
        book: PlanBook,
        labour: Labour,
        clock: VirtualClock,
        states: ClientStates,
        traffic: Traffic,
    ) -> None:
        self._fleet, self._planner, self._shards, self._book = fleet, planner, shards, book
        self._labour, self._clock, self._states, self._traffic = labour, clock, states, traffic
        self._stages: list[_Stage] = []
        self._under_way: dict[int, _Stage] = {}
        self._busy: dict[int, int] = {}
        self._next_ticket = 0

    def clients(self) -> IntArray:
        """Every client that is online and has no task."""
        return free_clients(self._fleet, self._clock.now_s, self._busy.keys())

    @property
    def busy(self) -> frozenset[int]:
        """Clients that have a task."""
        return frozenset(self._busy)

    @property
    def next_ticket(self) -> int:
        """The number of the next submission."""
        return self._next_ticket

    def pending(self) -> list[PendingTask]:
        """All tasks that have not ended, in order of submission."""
        return [
            PendingTask(ticket=ticket, start_s=stage.journey.start_s, task=stage.journey.given)
            for ticket, stage in sorted(self._under_way.items())
        ]

    def restore(self, pending: Iterable[PendingTask], next_ticket: int) -> None:
        """Puts tasks back under way as they were; they end when and as they would have ended."""
        for each in pending:
            self._planner.recall(each.task, each.start_s)
            self._enter(each.ticket, each.task, each.start_s)
        self._next_ticket = next_ticket

    def submit(self, client: int, task: ClientTask) -> int:
        """Sends a task now; returns its ticket."""
        assert task.client == client, (client, task.client)
        ticket = self._next_ticket
        self._next_ticket += 1
        self._enter(ticket, task, self._clock.now_s)
        return ticket

    def cancel(self, ticket: int) -> TaskEvent:
        """Gives up a task that has not ended."""
        stage, now_s = self._under_way[ticket], self._clock.now_s
        self._labour.drop(ticket)
        computed_s = stage.journey.computed_s
        sent_ratio = 0.0
        if stage.bytes_up and now_s > computed_s:
            sent_ratio = (now_s - computed_s) / (stage.at_s - computed_s)
        failure = failure_of(stage.journey.task, "late", f"not back after {now_s - stage.journey.start_s:.1f} s")
        return self._ended(_cut(replace(stage, at_s=now_s, failure=failure, update=None), sent_ratio))

    def next_event(self, timeout_s: float | None = None) -> TaskEvent | None:
        """The next task to end; the clock moves there, or by `timeout_s` where none ends that soon."""
        until_s = math.inf if timeout_s is None else self._clock.now_s + max(timeout_s, 0.0)
        while self._stages and self._stages[0].at_s <= until_s:
            stage = heapq.heappop(self._stages)
            if self._under_way.get(stage.ticket) is not stage:
                continue  # cancelled
            if stage.ends:
                self._clock.advance_to(stage.at_s)
                return self._ended(stage)
            self._push(self._uploading(stage))
        if timeout_s is not None:
            self._clock.advance_to(until_s)
        return None

    def now(self) -> float:
        """Virtual seconds since the run began."""
        return self._clock.now_s

    def advance_to(self, at_s: float) -> None:
        """Lets time pass while no task is under way."""
        assert not self._under_way
        self._clock.advance_to(at_s)

    def close(self) -> None:
        """The end of the run."""
        self._labour.close()

    def _enter(self, ticket: int, given: ClientTask, start_s: float) -> None:
        client = given.client
        assert client not in self._busy, f"client {client} has a task already"
        journey, at_s, failure = self._planner.begin(given, start_s)
        if failure is None and given.kind != "query":
            self._labour.begin(ticket, self._job(journey, at_s))
        self._busy[client] = ticket
        self._push(_Stage(at_s, ticket, journey, failure, bytes_up=self._planner.lost_bytes(journey, at_s)))

    def _push(self, stage: _Stage) -> None:
        self._under_way[stage.ticket] = stage
        heapq.heappush(self._stages, stage)

    def _job(self, journey: Journey, at_s: float) -> Job:
        client = journey.task.client
        return Job(
            task=journey.task,
            device=self._planner.device(client).name,
            legs=journey.walk.legs,
            shard=self._shards[client],
            state=self._states[client],
            at_s=at_s,
            evaluation_batch=journey.evaluation_batch,
        )

    def _answer(self, journey: Journey) -> Delivery:
        """What the client is and has."""
        task = journey.task
        metrics = {
            "budget_bytes": float(journey.promised_bytes),
            "kernel_s": self._book.kernel_s(self._planner.device(task.client).name),
        }
        update = Update(
            client=task.client,
            round_index=task.round_index,
            weights={},
            num_samples=len(self._shards[task.client]),
            samples_seen=0,
            steps=0,
            loss_mean=0.0,
            squared_loss_sum=0.0,
            measured_peak_bytes=0,
            kind=task.kind,
            metrics=metrics,
        )
        return Delivery(update=update)

    def _uploading(self, stage: _Stage) -> _Stage:
        """The task's end: its update has been computed and packed, and goes up the link."""
        journey = stage.journey
        delivery = self._labour.finish(stage.ticket) if journey.task.kind != "query" else self._answer(journey)
        device = self._planner.device(journey.task.client)
        # What went to and fro in the middle of the task has its time here, as if all of it had come at the end.
        bytes_up = delivery.asked_bytes + self._traffic.bytes_up(delivery)
        bytes_up = self._fleet.carried_bytes(journey.task.client, journey.task.seed, bytes_up)
        talk_s = delivery.answered_bytes / device.downlink_bytes_per_s
        arrives_s = stage.at_s + delivery.served_s + talk_s + bytes_up / device.uplink_bytes_per_s
        stage = replace(stage, bytes_up=bytes_up, answered_bytes=delivery.answered_bytes)
        if cut_off := self._planner.cut_off(journey, arrives_s):
            at_s, kind, detail = min(cut_off)
            sent_ratio = (at_s - stage.at_s) / (arrives_s - stage.at_s)
            failure = failure_of(journey.task, kind, detail)
            return _cut(replace(stage, at_s=at_s, failure=failure), sent_ratio)
        result = self._received(journey, delivery)
        if isinstance(result, Failure):
            return replace(stage, at_s=arrives_s, failure=result)
        return replace(stage, at_s=arrives_s, update=result)

    def _received(self, journey: Journey, delivery: Delivery) -> Update | Failure:
        task, fault = journey.task, journey.fault
        spoil = None if fault is None else partial(damaged, kind=fault.kind, seed=task.seed)
        return received(self._traffic, delivery, task, spoil=spoil)

    def _ended(self, stage: _Stage) -> TaskEvent:
        journey = stage.journey
        client, device = journey.task.client, self._planner.device(journey.task.client)
        del self._under_way[stage.ticket], self._busy[client]
        bytes_down = journey.bytes_down
        if stage.at_s < journey.compute_from_s:  # cut off before all of it was there
            bytes_down = int(bytes_down * (stage.at_s - journey.start_s) / (journey.compute_from_s - journey.start_s))
        bytes_down += stage.answered_bytes
        compute_s = max(0.0, min(stage.at_s, journey.computed_s) - journey.compute_from_s)
        energy_j = None
        if device.watts_compute is not None:
            energy_j = device.energy_j(compute_s, stage.bytes_up, bytes_down)
        submodel = journey.task.submodel
        programs = [self._book.program(device.name, leg.plan, submodel) for leg in journey.walk.legs]
        ran = stage.update is not None or (stage.failure is not None and stage.failure.ran is not None)
        result = stage.failure or stage.update
        assert result is not None
        return TaskEvent(
            ticket=stage.ticket,
            at_s=stage.at_s,
            duration_s=stage.at_s - journey.start_s,
            result=result,
            cost=TaskCost(
                bytes_down=bytes_down,
                bytes_up=stage.bytes_up,
                compute_s=compute_s,
                energy_j=energy_j,
                violations=journey.walk.violations(stage.at_s),
                switches=journey.walk.switches(stage.at_s),
            ),
            budget_bytes=journey.promised_bytes,
            planned_peak_bytes=max((program.peak_bytes for program in programs), default=None) if ran else None,
        )


def _cut(stage: _Stage, sent_ratio: float) -> _Stage:
    """A stage of which so much went over the link."""
    return replace(
        stage, bytes_up=int(sent_ratio * stage.bytes_up), answered_bytes=int(sent_ratio * stage.answered_bytes)
    )
