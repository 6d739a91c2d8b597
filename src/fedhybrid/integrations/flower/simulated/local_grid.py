"""Flower's grid inside one process, on a virtual clock: no Ray, no threads, no sockets.

The same ServerApp and ClientApp objects run over it as over Flower's own grids, in milliseconds and reproducibly. Time
passes only when `advance_to` or `send_and_receive` say so.
"""

from __future__ import annotations

import copy
import heapq
from collections.abc import Callable, Iterable, Mapping
from typing import final

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.serverapp import Grid

from fedhybrid.errors import ConfigError
from fedhybrid.integrations.flower.private import (
    SUPERLINK_NODE_ID,
    ErrorCode,
    Run,
    be_task,
    number_message,
    sent_by_server,
)

__all__ = ["LocalGrid"]


@final
class LocalGrid(Grid):
    """Nodes that all run one ClientApp, each with a context of its own that is kept between messages.

    A message is handled when it is pushed; its reply arrives `duration_s` later. Client and server get copies, as over
    a wire. What goes wrong is answered as Flower answers it: an exception in the app gives a reply with an error
    (the context stays as it was before), and so does a message to a node that is not there (any more). Several messages
    may be under way to one node; they do not wait for each other.

    >>> from flwr.app import Message, RecordDict
    >>> grid = LocalGrid(lambda message, context: Message(RecordDict(), reply_to=message), {7: {"partition-id": 0}})
    >>> ids = grid.push_messages([Message(RecordDict(), 7, "query")])
    >>> grid.pull_messages(ids), grid.next_arrival_s()
    ([], 1.0)
    >>> grid.advance_to(1.0)
    >>> [reply.metadata.src_node_id for reply in grid.pull_messages(ids)]
    [7]
    """

    def __init__(
        self,
        client_app: Callable[[Message, Context], Message],
        nodes: Mapping[int, UserConfig],
        *,
        run_config: UserConfig | None = None,
        duration_s: Callable[[Message, Message], float] = lambda message, reply: 1.0,
        silent: Callable[[Message], bool] = lambda message: False,
        run_id: int = 1,
    ) -> None:
        """Starts the clock at 0.

        Args:
            client_app: A ClientApp, or any function like one.
            nodes: Each node's number and its `node_config`.
            run_config: What every context gets as `run_config`.
            duration_s: From a message and its reply, the seconds between them.
            silent: Whether a message is lost with whoever should handle it: it is not handled, and no reply comes.
            run_id: The run that messages belong to.
        """
        self._app, self._duration_s, self._silent = client_app, duration_s, silent
        self._run, self._run_config = Run.create_empty(run_id), dict(run_config or {})
        self._contexts: dict[int, Context] = {}
        self._now_s, self._sent = 0.0, 0
        self._due: list[tuple[float, int, Message]] = []  # when, number of the message, its reply
        self._waiting: dict[int, Message] = {}  # number of the message, and it, until its reply has been pulled
        be_task(run_id=run_id, task_id=1, node_id=SUPERLINK_NODE_ID)
        for node_id, node_config in nodes.items():
            self.add_node(node_id, node_config)

    def set_run(self, run: Run) -> None:
        """Sets the run that messages belong to."""
        self._run = run
        be_task(run_id=run.run_id, task_id=1, node_id=SUPERLINK_NODE_ID)

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A new message, as `Message` makes it."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """The nodes that are there, in the order in which they came."""
        return list(self._contexts)

    def add_node(self, node_id: int, node_config: UserConfig) -> None:
        """Lets a node join, with an empty state.

        Raises:
            ConfigError: It is there already.
        """
        if node_id in self._contexts:
            raise ConfigError(f"node {node_id}: needs a number of its own, found it taken; remove that node first")
        self._contexts[node_id] = Context(
            self._run.run_id, node_id, dict(node_config), RecordDict(), dict(self._run_config)
        )

    def remove_node(self, node_id: int) -> None:
        """Takes a node away; what it still owed is answered now with an error.

        Raises:
            ConfigError: It is not there.
        """
        if self._contexts.pop(node_id, None) is None:
            raise ConfigError(f"node {node_id}: needs to be there, found only {self.get_node_ids()}")
        owed = {n: m for n, m in self._waiting.items() if m.metadata.dst_node_id == node_id}
        arrived = {number for at_s, number, _ in self._due if at_s <= self._now_s}
        self._due = [entry for entry in self._due if entry[1] not in owed or entry[1] in arrived]
        heapq.heapify(self._due)
        for number in sorted(owed.keys() - arrived):
            self._schedule(number, _unavailable(owed[number]), self._now_s)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Sends messages; each gets its number, by which its reply can be pulled."""
        ids = []
        for message in messages:
            self._sent += 1
            number_message(message, str(self._sent))
            self._waiting[self._sent] = message
            ids.append(str(self._sent))
            self._handle(self._sent, message)
        return ids

    def _handle(self, number: int, message: Message) -> None:
        context = self._contexts.get(message.metadata.dst_node_id)
        if context is None:
            self._schedule(number, _unavailable(message), self._now_s)
            return
        if self._silent(message):
            return
        # A real device gets its own copy of both, and what it did to its context is lost when its app fails.
        received, before = copy.deepcopy(message), copy.deepcopy(context.state)
        try:
            reply = copy.deepcopy(self._app(received, context))
            if not isinstance(reply, Message):
                raise TypeError(f"the app must return a Message, found {type(reply).__name__}")
        except Exception as error:  # whatever the app raises is its own; Flower too answers with it
            context.state = before
            reason = f"{type(error)}:<'{error}'>"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        self._schedule(number, reply, self._now_s + self._duration_s(message, reply))

    def _schedule(self, number: int, reply: Message, at_s: float) -> None:
        number_message(reply, f"{number}.reply")
        heapq.heappush(self._due, (at_s, number, reply))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Those replies to these messages that have arrived and were not pulled before, in order of arrival."""
        wanted = set(message_ids)
        ready = [entry for entry in sorted(self._due) if entry[0] <= self._now_s and str(entry[1]) in wanted]
        for entry in ready:
            del self._waiting[entry[1]]
        self._due = [entry for entry in self._due if entry[1] in self._waiting]
        heapq.heapify(self._due)
        return [reply for _, _, reply in ready]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Sends messages and lets time pass until all replies are there or `timeout` virtual seconds are over.

        Returns:
            The replies, in order of arrival.

        Raises:
            ConfigError: A reply never comes, and there is no timeout to end the waiting.
        """
        ids = self.push_messages(messages)
        arrivals = {str(number): at_s for at_s, number, _ in self._due}
        missing = [each for each in ids if each not in arrivals]
        if missing and timeout is None:
            raise ConfigError(f"timeout: needs a limit, as {len(missing)} of {len(ids)} replies never come; give one")
        end_s = self._now_s + (timeout or 0.0)
        last_s = max((arrivals[each] for each in ids if each in arrivals), default=self._now_s)
        if timeout is not None and (missing or last_s > end_s):
            last_s = end_s
        self.advance_to(last_s)
        return self.pull_messages(ids)

    def now(self) -> float:
        """Virtual seconds since the start."""
        return self._now_s

    def next_arrival_s(self) -> float | None:
        """When the next reply can be pulled: now, where one waits for that; None where none is under way."""
        return max(self._now_s, self._due[0][0]) if self._due else None

    def advance_to(self, at_s: float) -> None:
        """Lets time pass.

        Raises:
            ConfigError: `at_s` is in the past.
        """
        if at_s < self._now_s:
            raise ConfigError(f"at_s: needs a time from {self._now_s} s on, found {at_s}; time runs forwards only")
        self._now_s = at_s


def _unavailable(message: Message) -> Message:
    """What Flower's server answers for a node that is not there."""
    reason = f"node {message.metadata.dst_node_id} is not available"
    reply = Message(Error(ErrorCode.NODE_UNAVAILABLE, reason), reply_to=message)
    sent_by_server(reply)
    return reply
