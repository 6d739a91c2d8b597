"""A device's side of a deployment: one connection for as long as the device is there.

Flower's own node ends its process when a superlink that was restarted does not know it any more, asks for messages
every three seconds and starts a process for each. This one asks often while there is work and seldom when there is
none, and comes back by itself after whatever broke. Importing it costs what `flwr.app` costs, nothing of Flower's
servers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, final

import httpx
from flwr.app import Message

from fedhybrid.integrations.flower import private
from fedhybrid.integrations.flower.link.endpoint import Endpoint, passing_problem
from fedhybrid.integrations.flower.link.membership import Membership
from fedhybrid.integrations.flower.link.waiting import Deadline

__all__ = ["FleetConnection"]

_LOGGER = logging.getLogger(__name__)
_FASTEST_POLL_S, _SLOWEST_POLL_S, _SLOWER_RATIO = 0.05, 1.0, 1.15  # from one to the other in 7 s
_ASK_AGAIN_S, _ASK_AGAIN_AT_MOST_S = 0.02, 1.0


@final
class FleetConnection:
    """Context manager: a registered, living node of a superlink. One thread uses it; `close` may come from any.

    Args:
        endpoint: The server, and how its certificate is checked.
        key_file: This node's private key. None makes one that is forgotten at the end; only a server without
            authentication of nodes takes it.
        patience_s: How long to go on trying while the server does not answer or does not let this node in; None is for
            ever.
        said: Gets one sentence whenever the state of the connection changes.

    Raises:
        ConfigError: A wrong certificate, an unregistered key, TLS against no TLS, at once; an address where nothing
            answers, when patience is at its end. On entering, and later from `receive` and `send`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        key_file: str | Path | None = None,
        patience_s: float | None = None,
        said: Callable[[str], None] = _LOGGER.warning,
    ) -> None:
        self._endpoint, self._said = endpoint, said
        self._key_file, self._patience_s = None if key_file is None else Path(key_file), patience_s
        self._member: Membership | None = None
        self._closed = threading.Event()
        self._poll_s = _FASTEST_POLL_S

    @property
    def node_id(self) -> int:
        """This node's number at the superlink; another one after a restart of the superlink."""
        found = self._membership.node_id
        assert found is not None, "not connected yet"
        return found

    def __enter__(self) -> Self:
        self._member = Membership(self._endpoint, key_file=self._key_file, patience_s=self._patience_s, said=self._said)
        try:
            while not (self._member.ready() or self._closed.wait(self._member.wait_s())):
                pass
        except BaseException:
            self._member.leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._membership.leave()

    def close(self) -> None:
        """Makes whatever waits return: `receive` gives None, `send` gives False."""
        self._closed.set()

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """The next message for this node; None if there is none within `timeout_s` (None: wait for ever).

        Raises:
            ConfigError: The connection is broken for good; see the class.
        """
        deadline = Deadline(timeout_s)
        while not self._closed.is_set():
            if self._membership.ready():
                try:
                    message = self._pulled()
                except httpx.HTTPError as error:
                    self._membership.lost(error)
                    continue
                if message is not None:
                    self._poll_s = _FASTEST_POLL_S
                    return message
                pause_s = self._poll_s
                self._poll_s = min(self._poll_s * _SLOWER_RATIO, _SLOWEST_POLL_S)
            else:
                pause_s = self._membership.wait_s()
            if deadline.passed:
                return None
            self._closed.wait(deadline.within_s(pause_s))
        return None

    def send(self, reply: Message) -> bool:
        """Sends a reply; tries again as long as patience lasts where the line breaks.

        Returns:
            Whether it arrived. A run that has ended, or a superlink that was restarted, wants it no more.

        Raises:
            ConfigError: The connection is broken for good; see the class.
        """
        self._poll_s = _FASTEST_POLL_S
        while not self._closed.is_set():
            if not self._membership.ready():
                self._closed.wait(self._membership.wait_s())
                continue
            if reply.metadata.src_node_id != self.node_id:
                self._said("a reply was dropped: the server was restarted and has forgotten the question")
                return False
            try:
                self._push(reply)
            except httpx.HTTPError as error:
                if _unwanted(error):
                    self._said("a reply was dropped: its run has ended")
                    return False
                self._membership.lost(error)
            except private.ObjectPushError:
                self._said("a reply was dropped: the server did not keep its content")
                return False
            else:
                return True
        return False

    @property
    def _membership(self) -> Membership:
        assert self._member is not None, "use it as a context manager"
        return self._member

    def _pulled(self) -> Message | None:
        member, node = self._membership, private.Node(node_id=self.node_id)
        answer = member.client.PullMessages(private.PullMessagesRequest(node=node))
        if not answer.messages_list:
            return None
        metadata, tree = answer.messages_list[0].metadata, answer.message_object_trees[0]
        pull = private.make_pull_object_fn_protobuf(member.client.PullObject, node, metadata.run_id)
        ids = [part.object_id for part in private.iterate_object_tree(tree)]
        try:
            # Its content may still be on its way from the server process.
            contents = private.pull_objects(ids, pull, initial_backoff=_ASK_AGAIN_S, backoff_cap=_ASK_AGAIN_AT_MOST_S)
            confirmed = private.ConfirmMessageReceivedRequest(
                node=node, run_id=metadata.run_id, message_object_id=metadata.message_id
            )
            member.client.ConfirmMessageReceived(confirmed)
        except private.ObjectPullError as error:
            self._said(f"a message was dropped: {error}")
            return None
        except httpx.HTTPStatusError as error:
            if not _unwanted(error):
                raise
            self._said(f"a message was dropped, its run has ended: {passing_problem(error, self._endpoint)}")
            return None
        message = private.inflate_object_from_contents(metadata.message_id, contents)
        assert isinstance(message, Message)
        private.number_message(message, metadata.message_id)
        return message

    def _push(self, reply: Message) -> None:
        member, node = self._membership, private.Node(node_id=self.node_id)
        with private.no_object_id_recompute():
            private.number_message(reply, reply.object_id)
            answer = member.client.PushMessages(
                private.PushMessagesRequest(
                    node=node,
                    messages_list=[private.message_to_proto(private.remove_content_from_message(reply))],
                    message_object_trees=[private.get_object_tree(reply)],
                )
            )
            push = private.make_push_object_fn_protobuf(
                member.client.PushObject, node, reply.metadata.run_id, answer.session_id
            )
            private.push_objects(
                private.get_all_nested_objects(reply), push, object_ids_to_push=set(answer.objects_to_push)
            )


def _unwanted(error: httpx.HTTPError) -> bool:
    """Whether the server refuses the thing itself, not the caller and not for the moment."""
    if not isinstance(error, httpx.HTTPStatusError):
        return False
    code = error.response.status_code
    return code != httpx.codes.UNAUTHORIZED and httpx.codes.BAD_REQUEST <= code < httpx.codes.INTERNAL_SERVER_ERROR
