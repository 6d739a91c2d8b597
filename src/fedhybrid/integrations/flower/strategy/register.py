"""Asks nodes what they can do, and remembers it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version
from typing import final

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedhybrid.errors import ConfigError
from fedhybrid.integrations.flower.private import ErrorCode
from fedhybrid.integrations.flower.strategy.capabilities import Capabilities, read_capabilities
from fedhybrid.integrations.flower.strategy.members import REST_ROUNDS, Member
from fedhybrid.integrations.flower.strategy.offers import Offer, Offers

__all__ = ["Register"]

_log = logging.getLogger("flwr")
_QUERY = "query.fedhybrid"
# What Flower's server answers for a node, rather than the node itself.
_GONE = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE)


@final
class Register:
    """All nodes that have answered.

    Attributes:
        members: By Flower's number.
        silent: Why others are no members yet.
    """

    def __init__(self, offers: Offers, *, query_timeout_s: float) -> None:
        self._offers, self._timeout_s = offers, query_timeout_s
        self.members: dict[int, Member] = {}
        self.silent: dict[int, str] = {}
        self._left: dict[int, Member] = {}
        self._pauses: dict[int, int] = {}  # rounds until a node is asked again

    def ask(self, grid: Grid, node_ids: Sequence[int]) -> None:
        """Asks those that are no members yet; whom no reply came from last time, once in five rounds.

        A node that goes is asked again when it comes back.
        """
        for node_id in self.members.keys() - set(node_ids):
            self._left[node_id] = self.members.pop(node_id)
        self._pauses = {n: rounds - 1 for n, rounds in self._pauses.items() if rounds > 1}
        strangers = [n for n in node_ids if n not in self.members and n not in self._pauses]
        if not strangers:
            return
        queries = {n: Message(RecordDict(), n, _QUERY) for n in strangers}
        self.silent |= dict.fromkeys(strangers, "it has not answered what it can do")
        replies = list(grid.send_and_receive(list(queries.values()), timeout=self._timeout_s))
        asked = {message.metadata.message_id: node_id for node_id, message in queries.items()}
        found = {asked[r.metadata.reply_to_message_id]: r for r in replies if r.metadata.reply_to_message_id in asked}
        for node_id in sorted(found):  # in the same order whatever came first
            reply = found[node_id]
            if reply.has_error() and reply.error.code in _GONE:
                self.silent[node_id] = f"it is gone: {reply.error.reason}"
                continue
            del self.silent[node_id]
            self.members[node_id] = self._member(node_id, reply)
        self._pauses |= dict.fromkeys([n for n in strangers if n not in found], REST_ROUNDS)

    def offer(self, member: Member) -> Offer | str:
        """What a member would run now, or why it cannot."""
        if member.planned:
            return self._offers.planned(member.device, member.trusted_bytes)
        return self._offers.unplanned(member.trusted_bytes)

    def _member(self, node_id: int, reply: Message) -> Member:
        said: Capabilities | None = None
        try:
            note = "" if reply.has_content() else str(reply.error.reason)
            said = read_capabilities(reply.content) if reply.has_content() else None
        except ConfigError as error:
            note = f"its answer {error}"
        if said is None:
            _log.info("FedHybrid: node %d gets no plan: %s", node_id, note)
        elif (its_torch := said.versions.get("torch")) != version("torch"):
            note = f"it has torch {its_torch}, the server {version('torch')}: a plan may not fit its step"
            _log.warning("FedHybrid: node %d: %s", node_id, note)
        budget_bytes = self._offers.unplanned_bytes if said is None else self._offers.bytes_of(said.budget)
        left = self._left.pop(node_id, None)
        member = Member(
            node_id=node_id,
            number=len(self.members) + len(self._left) if left is None else left.number,
            device=(said and said.device) or self._offers.assumed,
            reported_bytes=budget_bytes,
            trusted_bytes=budget_bytes,
            num_examples=said.num_examples if said else None,
            planned=said is not None,
            note=note,
        )
        if left is not None and (left.reported_bytes, left.planned) == (member.reported_bytes, member.planned):
            member.trusted_bytes, member.before = left.trusted_bytes, left.before  # it may have been killed
        return member
