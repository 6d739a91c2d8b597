"""A driver in real time: tasks go to registered nodes as Flower messages and end when their replies are there.

Nobody is trusted to answer: a node that is gone, that began anew or that takes too long has lost its task, which is an
event like any other; the next plan for it is smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from flwr.app import Message
from flwr.serverapp import Grid

from fedhybrid.engine.driver import PendingTask
from fedhybrid.engine.evaluate import EvaluationSizes
from fedhybrid.engine.labour import Attend
from fedhybrid.engine.parcels import delivery_from, job_parts
from fedhybrid.engine.plans import PlanBook
from fedhybrid.engine.receiving import received
from fedhybrid.engine.states import ClientStates
from fedhybrid.engine.traffic import Delivery, Traffic
from fedhybrid.errors import ConfigError
from fedhybrid.integrations.flower.deployed.greeting import Greeter, Post
from fedhybrid.integrations.flower.deployed.nodes import Node, Roll, count_of, readable
from fedhybrid.integrations.flower.deployed.open_tasks import OpenTask, Patience, carried, job_of, refusal_of, why_lost
from fedhybrid.integrations.flower.messages import TASK, Letter, letter_of
from fedhybrid.records import ClientTask, Failure, IntArray, TaskCost, TaskEvent, Update
from fedhybrid.tree import Tensors, total_bytes

__all__ = ["DeployedDriver"]

_LOOK_AGAIN_S = 0.05
_LONGEST_S = 1e7  # of a task; what is above was made up


@final
class DeployedDriver:
    """Implements `protocols.Driver` over a grid, and what the loop asks of a driver beside it.

    Attributes:
        roll: The nodes.
    """

    def __init__(
        self,
        grid: Grid,
        roll: Roll,
        *,
        brief: str,
        attend: Attend,
        book: PlanBook,
        traffic: Traffic,
        states: ClientStates,
        sizes: EvaluationSizes,
        boot: int,
        began_s: float,
        clock: Callable[[], float],
        wait: Callable[[float], None],
        patience: Patience,
        on_news: Callable[[str], None],
    ) -> None:
        """Nothing is sent before the first look.

        Args:
            grid: Carries messages.
            roll: Of this run.
            brief: What devices must know of the recipe.
            attend: Makes the server's side of a task.
            book: Has the plans.
            traffic: Packs and unpacks.
            states: Says which of a client's tasks counted last.
            sizes: How many samples at once fit which budget when a device tests the model.
            boot: Tells the tickets of this start of the server from those of others.
            began_s: What the run's clock says now.
            clock: Seconds of any origin.
            wait: Lets so many seconds pass.
            patience: How long is waited.
            on_news: Hears of nodes that come, go and are refused.
        """
        self.roll, self._brief, self._attend, self._book = roll, brief, attend, book
        self._traffic, self._states, self._sizes, self._boot = traffic, states, sizes, boot
        self._clock, self._wait, self._patience, self._on_news = clock, wait, patience, on_news
        self._zero_s = clock() - began_s
        self._post = Post(grid)
        self._greeter = Greeter(
            self._post, roll, brief=brief, book=book, join_s=patience.join_s, now=self.now, on_news=on_news
        )
        self._open: dict[int, OpenTask] = {}
        self._messages: dict[str, int] = {}
        # Nodes that may still work at a task that was given up: which, and since when.
        self._resting: dict[int, tuple[int, float]] = {}
        self._events: list[TaskEvent] = []
        self._next_ticket = 0

    def clients(self) -> IntArray:
        """Every client whose node has joined and has nothing to do."""
        self.look()
        return np.array(sorted(self.roll.ready.keys() - self.busy), dtype=np.int64)

    @property
    def busy(self) -> frozenset[int]:
        """Clients that have a task."""
        return frozenset(each.given.client for each in self._open.values())

    @property
    def unavailable(self) -> frozenset[int]:
        """Clients that cannot be given a task although they have none."""
        return frozenset(c for c, node in self.roll.by_client.items() if node.node_id in self._resting)

    @property
    def next_ticket(self) -> int:
        """The number of the next submission."""
        return self._next_ticket

    def pending(self) -> list[PendingTask]:
        """All tasks that have not ended."""
        return [
            PendingTask(ticket=each.ticket, start_s=each.start_s, task=each.given)
            for each in sorted(self._open.values(), key=lambda each: each.ticket)
        ]

    def restore(self, pending: Iterable[PendingTask], next_ticket: int) -> None:
        """Gives tasks out again whose nodes may have gone on with them, but to a server that is no more."""
        self._next_ticket = next_ticket
        for each in pending:
            if each.task.plan is not None:
                self._book.recall(each.task.plan)
            self._enter(each.ticket, each.task)

    def submit(self, client: int, task: ClientTask) -> int:
        """Sends a task now; returns its ticket."""
        assert task.client == client, (client, task.client)
        ticket = self._next_ticket
        self._next_ticket += 1
        self._enter(ticket, task)
        return ticket

    def cancel(self, ticket: int) -> TaskEvent:
        """Gives up a task; its node is left alone until it has ended there, too."""
        held = next((event for event in self._events if event.ticket == ticket), None)
        if held is not None:
            self._events.remove(held)
            return held
        each = self._open[ticket]
        self._rest(each)
        return self._ended(each, each.failed("late", f"not back after {self.now() - each.start_s:.1f} s"))

    def next_event(self, timeout_s: float | None = None) -> TaskEvent | None:
        """The next task to end; None when none ends within `timeout_s`, or none is under way."""
        until_s = None if timeout_s is None else self.now() + max(timeout_s, 0.0)
        while not self._events:
            busy = bool(self._open)
            self.look()
            if self._events:
                break
            if until_s is None and not busy:
                return None
            if until_s is not None and self.now() >= until_s:
                return None
            self._wait(_LOOK_AGAIN_S if until_s is None else min(_LOOK_AGAIN_S, max(until_s - self.now(), 0.0)))
        return self._events.pop(0)

    def now(self) -> float:
        """Real seconds that the run has taken, times before a restart included."""
        return self._clock() - self._zero_s

    def start_clock(self, at_s: float) -> None:
        """Sets the clock: what came before, such as waiting for nodes, was no part of the run."""
        assert not self._open
        self._zero_s = self._clock() - at_s

    def advance_to(self, at_s: float) -> None:
        """Waits, and looks who comes in the meantime."""
        while (left_s := at_s - self.now()) > 0:
            self.look()
            self._wait(min(_LOOK_AGAIN_S, left_s))

    def close(self) -> None:
        """Lets nodes go that wait for an answer."""
        for each in list(self._open.values()):
            if each.attendant is not None:
                self._post.push(each.node_id, TASK, Letter(kind="given-up", header=self._header(each)))

    def look(self) -> None:
        """Greets nodes that are new, reads what has come, gives up what takes too long."""
        for node_id in self._greeter.look(set(self._post.nodes())):
            self._gone(node_id)
        replies = self._post.pulled([*self._messages, *self._greeter.waiting])
        # A node answers in turn: a task's reply that comes with the answer to a ping was sent before it.
        for sent, reply in sorted(replies.items(), key=lambda pair: pair[0] not in self._messages):
            if sent in self._messages:
                self._read(self._messages.pop(sent), reply)
            elif (ticket := self._greeter.heard(sent, reply)) is not None and ticket in self._open:
                self._open[ticket].suspect_s = self.now()
        self._give_up()

    def _gone(self, node_id: int) -> None:
        self._resting.pop(node_id, None)
        for each in [each for each in self._open.values() if each.node_id == node_id]:
            self._lost(each, "disconnected", "the device is not connected any more")
        self._greeter.gone(node_id)

    def _give_up(self) -> None:
        now_s, patience = self.now(), self._patience
        for each in list(self._open.values()):
            silent_s = now_s - each.heard_s
            if silent_s > patience.task_s:
                self._rest(each)
                self._lost(each, "time_out", f"nothing was heard of it for {silent_s:.1f} s")
            elif each.suspect_s is not None and now_s - each.suspect_s > patience.doubt_s:
                self._lost(each, "disconnected", "the device's program was started anew")
            elif silent_s > patience.ping_s:
                self._greeter.ping(each.node_id, each.ticket, every_s=patience.ping_s)
        for node_id, (ticket, since_s) in list(self._resting.items()):
            if self._greeter.at_leisure(node_id, ticket):
                del self._resting[node_id]
            elif now_s - since_s > patience.ping_s:
                self._greeter.ping(node_id, ticket, every_s=patience.ping_s)

    def _rest(self, each: OpenTask) -> None:
        """The node is left alone until it has answered this task, or says that it is not at it."""
        self._resting[each.node_id] = (each.ticket, self.now())

    def _enter(self, ticket: int, given: ClientTask) -> None:
        """Sends a task, or ends it at once where it cannot be done."""
        node = self.roll.ready.get(given.client)
        weights, bytes_down = self._traffic.sent_down(carried(given, self._book), version=given.round_index)
        task = replace(given, weights=weights)
        budget_bytes = 0 if node is None else self._budget_bytes(node)
        needed_bytes = self._book.needed_bytes(task.plan, task.submodel)
        each = OpenTask(
            ticket=ticket,
            given=given,
            task=task,
            node_id=-1 if node is None else node.node_id,
            start_s=self.now(),
            heard_s=self.now(),
            budget_bytes=budget_bytes,
            needed_bytes=needed_bytes,
            bytes_down=bytes_down,
            attendant=self._attend(given),
            planned_peak_bytes=None,
        )
        self._open[ticket] = each
        failure = None if node is None else refusal_of(each, node, self._sizes, self._book)
        if failure is not None or node is None:
            each.bytes_down = 0
            self._finish(each, failure or each.failed("disconnected", "the device is not connected"))
            return
        job = job_of(each, node, self._sizes)
        header, groups = job_parts(job)
        del groups["shard"], groups["state"]  # a device knows what it holds, and keeps what it keeps
        programs = {leg.plan: self._book.program(job.device, leg.plan, task.submodel) for leg in job.legs}
        plans = {name: program.to_json() for name, program in programs.items() if name}
        if job.legs:
            each.planned_peak_bytes = max(program.peak_bytes for program in programs.values())
        header |= self._header(each) | {
            "asks": each.attendant is not None,
            "accepted": _key_of(self._states[task.client]),
            "stored": _key_of(self._states.stored(task.client)),
        }
        self._deliver(each, Letter(kind="job", header=header, groups=groups, plans=plans))

    def _budget_bytes(self, node: Node) -> int:
        return node.budget_bytes(resident_bytes=self._book.resident_bytes, eager_peak_bytes=self._book.eager_peak_bytes)

    def _header(self, each: OpenTask) -> dict[str, Any]:
        return {"key": f"{self._boot}-{each.ticket}", "brief": self._brief, "deployed": True}

    def _deliver(self, each: OpenTask, letter: Letter) -> None:
        sent = self._post.push(each.node_id, TASK, letter)
        if sent is None:
            self._lost(each, "disconnected", "Flower did not take the message")
        else:
            self._messages[sent] = each.ticket

    def _read(self, ticket: int, reply: Message) -> None:
        """A node's reply to a task, or to the answer to its question."""
        each = self._open.get(ticket)
        for node_id in [n for n, (late, _) in self._resting.items() if late == ticket]:
            del self._resting[node_id]
        if each is None:
            return
        if reply.has_error():
            self._lost(each, *why_lost(reply.error))
            return
        each.heard_s, each.suspect_s = self.now(), None
        try:
            letter = letter_of(reply.content)
            if letter.kind == "question":
                self._answer(each, letter.groups.get("question", {}))
            elif letter.kind == "delivery":
                self._delivered(each, letter)
            else:
                self._refused(each, letter)
        except Exception as error:  # whatever somebody else's message does here, the run goes on
            if each.ticket in self._open:
                said = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
                self._finish(each, each.failed("corrupt", readable(said)))

    def _answer(self, each: OpenTask, question: Tensors) -> None:
        if each.attendant is None:
            raise ConfigError("the device asks in the middle of a task whose method answers nothing")
        answer = each.attendant.answer(question)
        each.asked_bytes += total_bytes(question)
        each.answered_bytes += total_bytes(answer)
        self._deliver(each, Letter(kind="answer", header=self._header(each), groups={"answer": answer}))

    def _delivered(self, each: OpenTask, letter: Letter) -> None:
        """What the server knows better than the node is not taken from it: who holds how much, what was asked."""
        node = self.roll.by_client.get(each.task.client)
        delivery = delivery_from(letter.header, letter.groups, each.task)
        held = None if node is None else node.num_samples
        if held is not None and delivery.update.num_samples != held:
            raise ConfigError(
                f"the update is of {delivery.update.num_samples:,} samples, the node joined with {held:,}"
            )
        served = {} if each.attendant is None else each.attendant.result()
        delivery = replace(delivery, served=served, asked_bytes=each.asked_bytes, answered_bytes=each.answered_bytes)
        self.roll.promises(each.task.client, letter.header.get("budget"))
        if letter.header.get("state_lost"):
            self._on_news(f"{self.roll.name_of(each.task.client)} has lost what it kept, and begins anew without it")
        result = received(self._traffic, delivery, each.task)
        if isinstance(result, Update):
            result = replace(result, state={"key": torch.tensor([self._boot, each.ticket])})
            if node is not None:
                node.succeeded()
                self.roll.changes += 1
        self._finish(each, result, delivery, letter.header)

    def _refused(self, each: OpenTask, letter: Letter) -> None:
        why, kind = readable(str(letter.header.get("why", ""))), str(letter.header.get("outcome", "crash"))
        if kind == "not_joined":
            self._greeter.forget(each.node_id)
            self._finish(each, each.failed("disconnected", "the device's program was started anew"))
        elif kind == "out_of_memory":
            self._lost(each, kind, why)
        else:
            self._finish(each, each.failed("crash", why))

    def _lost(self, each: OpenTask, kind: str, detail: str) -> None:
        """A task that may have been ended for its memory."""
        node = self.roll.by_client.get(each.task.client)
        if node is not None and each.task.kind != "evaluate":
            node.lost(each.needed_bytes, self._book.least_bytes(node.device.name))
            self.roll.changes += 1
        self._finish(each, each.failed(kind, detail))

    def _finish(
        self,
        each: OpenTask,
        result: Update | Failure,
        delivery: Delivery | None = None,
        header: Mapping[str, Any] | None = None,
    ) -> None:
        self._events.append(self._ended(each, result, delivery, header or {}))

    def _ended(
        self,
        each: OpenTask,
        result: Update | Failure,
        delivery: Delivery | None = None,
        header: Mapping[str, Any] | None = None,
    ) -> TaskEvent:
        seconds = (header or {}).get("seconds")
        compute_s = float(seconds) if isinstance(seconds, float) and 0 <= seconds < _LONGEST_S else 0.0
        bytes_up = 0 if delivery is None else delivery.asked_bytes + self._traffic.bytes_up(delivery)
        bytes_down = each.bytes_down + (0 if delivery is None else delivery.answered_bytes)
        node = self.roll.by_client.get(each.task.client)
        energy_j = None
        if node is not None and node.device.watts_compute is not None:
            energy_j = node.device.energy_j(compute_s, bytes_up, bytes_down)
        event = TaskEvent(
            ticket=each.ticket,
            at_s=self.now(),
            duration_s=self.now() - each.start_s,
            result=result,
            cost=TaskCost(
                bytes_down=bytes_down,
                bytes_up=bytes_up,
                compute_s=compute_s,
                energy_j=energy_j,
                runtime_bytes=None if delivery is None else count_of((header or {}).get("runtime_bytes")),
            ),
            budget_bytes=each.budget_bytes,
            planned_peak_bytes=each.planned_peak_bytes if delivery is not None else None,
        )
        del self._open[each.ticket]  # last: what is open has an end, whatever happens above
        return event


def _key_of(state: Tensors) -> str:
    """The key of the task in which a client kept what it goes on from; the server knows no more of it."""
    return "" if "key" not in state else "-".join(str(int(part)) for part in state["key"])
