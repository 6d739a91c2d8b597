"""Training on Flower's nodes under the virtual clock of this process: jobs go out as messages, deliveries come back.

The driver of the engine keeps time and order as it does in process, so cohorts, plans and weights are the same; only
who computes is different.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import final

from flwr.app import Message
from flwr.serverapp import Grid

from fedhybrid.engine.labour import Attend, Job
from fedhybrid.engine.parcels import delivery_from, job_parts
from fedhybrid.engine.plans import PlanBook
from fedhybrid.engine.traffic import Delivery
from fedhybrid.integrations.flower.messages import TASK, Letter, letter_of, record_of
from fedhybrid.integrations.flower.simulated.mailbox import Mailbox
from fedhybrid.protocols import Attendant

__all__ = ["GridLabour"]

_LOOK_AGAIN_S = 0.005


@final
class GridLabour:
    """Implements `engine.labour.Labour` over a grid; client c is done by node c."""

    def __init__(
        self,
        grid: Grid,
        nodes: Sequence[int],
        *,
        brief: str,
        attend: Attend,
        book: PlanBook,
        open_mailbox: Callable[[], Mailbox] | None = None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """Sends nothing yet.

        Args:
            grid: Carries the messages.
            nodes: The node of each client.
            brief: What devices must know of the recipe.
            attend: Makes the server's side of a task, which answers questions.
            book: Has the plans.
            open_mailbox: Another way for questions than replies, made when it is first needed.
            wait: Lets so many seconds pass, when no reply is there.
        """
        self._grid, self._nodes, self._brief, self._attend, self._book = grid, nodes, brief, attend, book
        self._open_mailbox, self._wait = open_mailbox, wait
        self._mailbox: Mailbox | None = None
        self._open: dict[str, int] = {}  # message -> ticket
        self._clients: dict[int, int] = {}
        self._attendants: dict[int, Attendant] = {}
        self._done: dict[int, Delivery] = {}
        self._dropped: set[int] = set()

    def begin(self, ticket: int, job: Job) -> None:
        """Sends it."""
        attendant = self._attend(job.task)
        if attendant is not None:
            self._attendants[ticket] = attendant
            if self._open_mailbox is not None and self._mailbox is None:
                self._mailbox = self._open_mailbox()
        header, groups = job_parts(job)
        del groups["shard"]  # a device knows what it holds
        plans = {leg.plan: self._book.program(job.device, leg.plan).to_json() for leg in job.legs if leg.plan}
        header |= {
            "key": str(ticket),
            "brief": self._brief,
            "asks": attendant is not None,
            "mailbox": "" if attendant is None or self._mailbox is None else self._mailbox.name,
        }
        self._clients[ticket] = job.task.client
        self._send(ticket, Letter(kind="job", header=header, groups=groups, plans=plans))

    def finish(self, ticket: int) -> Delivery:
        """Waits for it, and answers whoever asks in the meantime."""
        while ticket not in self._done:
            if not self._look():
                self._wait(_LOOK_AGAIN_S)
        return self._done.pop(ticket)

    def drop(self, ticket: int) -> None:
        """What comes of it is thrown away."""
        if self._done.pop(ticket, None) is None and ticket in self._clients:
            self._dropped.add(ticket)
            if ticket in self._attendants and self._mailbox is not None:
                self._mailbox.answer(str(ticket), None)

    def close(self) -> None:
        """Lets those go who wait for an answer."""
        mailbox, self._mailbox = self._mailbox, None
        if mailbox is not None:
            mailbox.close()
        for ticket in list(self._clients):
            self.drop(ticket)

    def _send(self, ticket: int, letter: Letter) -> None:
        message = Message(record_of(letter), self._nodes[self._clients[ticket]], TASK)
        (sent,) = self._grid.push_messages([message])
        if not sent:
            raise RuntimeError("Flower did not take a message; see its log")
        self._open[sent] = ticket

    def _look(self) -> bool:
        """Takes what has come; whether anything has."""
        replies = list(self._grid.pull_messages(list(self._open)))
        for reply in replies:
            self._read(self._open.pop(reply.metadata.reply_to_message_id), reply)
        asked = {} if self._mailbox is None or not self._attendants else self._mailbox.questions()
        for key, question in asked.items():
            assert self._mailbox is not None
            gone = int(key) in self._dropped
            self._mailbox.answer(key, None if gone else self._attendants[int(key)].answer(question))
        return bool(replies or asked)

    def _read(self, ticket: int, reply: Message) -> None:
        if ticket in self._dropped:
            waits = not reply.has_error() and letter_of(reply.content).kind == "question"
            if waits:
                self._send(ticket, Letter(kind="given-up", header={"key": str(ticket), "brief": self._brief}))
            else:
                self._dropped.discard(ticket)
                self._forget(ticket)
            return
        if reply.has_error():
            raise RuntimeError(f"a node failed at a task of client {self._clients[ticket]}: {reply.error.reason}")
        letter = letter_of(reply.content)
        if letter.kind == "question":
            answer = self._attendants[ticket].answer(letter.groups.get("question", {}))
            header = {"key": str(ticket), "brief": self._brief}
            self._send(ticket, Letter(kind="answer", header=header, groups={"answer": answer}))
            return
        if letter.kind != "delivery":
            raise RuntimeError(f"a node refused a task of client {self._clients[ticket]}: {letter.header.get('why')}")
        delivery = delivery_from(letter.header, letter.groups)
        attendant = self._attendants.get(ticket)
        self._done[ticket] = delivery if attendant is None else _served(delivery, attendant)
        self._forget(ticket)

    def _forget(self, ticket: int) -> None:
        self._attendants.pop(ticket, None)
        del self._clients[ticket]


def _served(delivery: Delivery, attendant: Attendant) -> Delivery:
    return replace(delivery, served=attendant.result(), served_s=attendant.compute_s)
