"""Letters that are no tasks: who are you, join this recipe, are you still there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import final

from flwr.app import Message
from flwr.serverapp import Grid

from fedhybrid.engine.plans import PlanBook
from fedhybrid.errors import ConfigError
from fedhybrid.integrations.flower.deployed.nodes import Roll, readable
from fedhybrid.integrations.flower.messages import QUERY, Letter, letter_of, record_of

__all__ = ["Greeter", "Post"]

_GREET_AGAIN_S = 20.0


@final
class Post:
    """Letters over a grid."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def nodes(self) -> Iterable[int]:
        """Flower's numbers of those that are connected."""
        return self._grid.get_node_ids()

    def push(self, node_id: int, message_type: str, letter: Letter) -> str | None:
        """Sends a letter; the message's id, or None where Flower does not take it."""
        sent = list(self._grid.push_messages([Message(record_of(letter), node_id, message_type)]))
        return (sent[0] or None) if sent else None

    def pulled(self, sent: Sequence[str]) -> dict[str, Message]:
        """The replies that have come to these messages."""
        replies = self._grid.pull_messages(sent) if sent else ()
        return {reply.metadata.reply_to_message_id: reply for reply in replies}


@dataclass(frozen=True, kw_only=True)
class _Query:
    """A letter under way: "hello", "join", "ping" or "refused"."""

    kind: str
    node_id: int
    sent_s: float
    ticket: int = -1


@final
class Greeter:
    """Brings nodes from the door to the roll."""

    def __init__(
        self,
        post: Post,
        roll: Roll,
        *,
        brief: str,
        book: PlanBook,
        join_s: float,
        now: Callable[[], float],
        on_news: Callable[[str], None],
    ) -> None:
        self._post, self._roll, self._brief, self._book = post, roll, brief, book
        self._join_s, self._now, self._on_news = join_s, now, on_news
        self._known: set[int] = set()
        self._queries: dict[str, _Query] = {}
        self._at_leisure: set[tuple[int, int]] = set()
        self._pinged_s: dict[int, float] = {}  # task -> when its node was asked last
        self._again_s: dict[int, float] = {}  # node that was refused -> when it is greeted again

    @property
    def waiting(self) -> list[str]:
        """Messages that have no reply yet."""
        return list(self._queries)

    def look(self, there: set[int]) -> set[int]:
        """Greets those who are new, and again those who do not answer; returns those who have gone."""
        for node_id in [node_id for node_id, at_s in self._again_s.items() if at_s <= self._now()]:
            del self._again_s[node_id]
            self._known.discard(node_id)
        for node_id in there - self._known:
            self._ask(node_id, "hello", Letter(kind="hello"))
        gone, self._known = self._known - there, there
        for sent, query in list(self._queries.items()):
            if query.node_id in gone:
                del self._queries[sent]
            elif query.kind in ("hello", "join") and self._now() - query.sent_s > self._join_s:
                del self._queries[sent]
                self._on_news(f"node {query.node_id} does not answer {query.kind!r}; it is asked again")
                self._known.discard(query.node_id)
        return gone

    def forget(self, node_id: int) -> None:
        """The node is to be greeted anew."""
        self._roll.leave(node_id)
        self._known.discard(node_id)

    def gone(self, node_id: int) -> None:
        """The node is not connected any more."""
        node = self._roll.at(node_id)
        if node is not None:
            self._on_news(f"{node.name} has gone")
            self._roll.leave(node_id)

    def ping(self, node_id: int, ticket: int, *, every_s: float) -> None:
        """Asks a node that works at a task whether it is still there, unless it was asked less than `every_s` ago."""
        last_s = self._pinged_s.get(ticket)
        if last_s is None or self._now() - last_s >= every_s:
            self._pinged_s[ticket] = self._now()
            self._ask(node_id, "ping", Letter(kind="hello"), ticket)

    def at_leisure(self, node_id: int, ticket: int) -> bool:
        """Whether the node has answered a ping that was sent while it should have been at this task."""
        found = (node_id, ticket) in self._at_leisure
        if found:
            self._at_leisure.discard((node_id, ticket))
            self._pinged_s.pop(ticket, None)
        return found

    def heard(self, sent: str, reply: Message) -> int | None:
        """Reads an answer; the ticket of the task that its node cannot be at any more, if it says that."""
        query = self._queries.pop(sent, None)
        if query is None or query.kind == "refused":
            return None
        if query.kind == "ping":
            if reply.has_error():
                return None
            self._at_leisure.add((query.node_id, query.ticket))
            return query.ticket
        try:
            if reply.has_error():
                raise ConfigError(f"node {query.node_id} answered {query.kind!r} with an error: {reply.error.reason}")
            letter = letter_of(reply.content)
            if letter.kind == "refused":
                raise ConfigError(f"node {query.node_id} cannot take part: {letter.header.get('why')}")
            if query.kind == "hello":
                self._enter(query.node_id, letter)
            else:
                self._joined(query.node_id, letter)
        except Exception as error:  # whatever somebody else's message does here, the run goes on
            said = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
            self._refuse(query.node_id, readable(said))
        return None

    def _refuse(self, node_id: int, why: str) -> None:
        """Says why at both ends, and greets the node again after a while: what was wrong may be mended."""
        self._roll.leave(node_id)
        self._again_s[node_id] = self._now() + _GREET_AGAIN_S
        if self._roll.refused.get(node_id) != why:
            self._roll.refused[node_id] = why
            self._on_news(f"refused: {why}")
            self._ask(node_id, "refused", Letter(kind="refused", header={"why": why}))

    def _enter(self, node_id: int, letter: Letter) -> None:
        node = self._roll.enter(node_id, letter.header)
        self._book.add_devices({node.device.name: node.device})
        self._ask(node_id, "join", Letter(kind="join", header={"brief": self._brief, "client": node.client}))

    def _joined(self, node_id: int, letter: Letter) -> None:
        node = self._roll.at(node_id)
        if node is not None:
            self._roll.joined(node.client, letter.header)
            self._roll.refused.pop(node_id, None)
            self._on_news(f"{node.name} has joined as client {node.client}")

    def _ask(self, node_id: int, kind: str, letter: Letter, ticket: int = -1) -> None:
        sent = self._post.push(node_id, QUERY, letter)
        if sent is not None:
            self._queries[sent] = _Query(kind=kind, node_id=node_id, sent_s=self._now(), ticket=ticket)
