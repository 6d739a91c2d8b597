"""The server's side of a deployment: a Flower `Grid` over the wire, in the name of one run.

Flower starts a process for this; here it is the process that holds the superlink. It takes the run's server task, keeps
it alive with a heartbeat, and says at the end how it went. Flower's own grid waits for a reply's content that is still
on its way, for minutes where its node was killed in the middle, and ends the whole process where it is refused. This
one never waits for content: a reply is given once all of it is there, and one that cannot be read is an error message
in its place, so that no node holds up another's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, final

import httpx
from flwr.app import Error, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedhybrid.errors import FedHybridError
from fedhybrid.integrations.flower import private
from fedhybrid.integrations.flower.link.control import owner_client
from fedhybrid.integrations.flower.link.superlink import Superlink
from fedhybrid.integrations.flower.link.waiting import Deadline, Heart

__all__ = ["RunGrid", "open_run_grid"]

_BEAT_S = 15.0  # a task counts as dead after 60 s without
_POLL_S = 0.05
_ASK_AGAIN_S = 0.02
_UPLOAD_S = 60.0  # Flower sends pieces of 20 MiB: enough at 0.35 MB/s
_TRIES = 4  # a connection that was idle may be closed just when it is used


@dataclass(kw_only=True)
class _Coming:
    """A reply that the superlink has announced.

    Attributes:
        message_id: Its own.
        node_id: Who sends it.
        parts: Ids of the objects that it consists of.
        until: When the next of them must be there.
        contents: Those that are there.
    """

    message_id: str
    node_id: int
    parts: list[str]
    until: Deadline
    contents: dict[str, bytes] = field(default_factory=dict)


@final
class RunGrid(Grid):
    """Messages of one run, pushed to and pulled from a superlink. Made by `open_run_grid`."""

    def __init__(
        self,
        client: private.RuntimeHttpClient,
        superlink: Superlink,
        run: private.Run,
        node_id: int,
        *,
        upload_s: float = _UPLOAD_S,
    ) -> None:
        self._client, self._superlink, self._run, self._upload_s = client, superlink, run, upload_s
        self._node = private.Node(node_id=node_id)
        self._coming: dict[str, _Coming] = {}  # by the message that it answers

    def set_run(self, run: private.Run) -> None:
        """The run is given when the grid is opened."""
        if run.run_id != self._run.run_id:
            raise ValueError(f"this grid is open for run {self._run.run_id}, not {run.run_id}")

    @property
    def run(self) -> private.Run:
        """What the superlink says about the run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message of this run; the same as Flower's `Message(...)`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Nodes whose heartbeat was heard lately."""
        return [node.node_id for node in self.get_nodes()]

    def get_nodes(self) -> list[private.NodeInfo]:
        """The same, with what the superlink knows about each."""
        return list(self._ask(self._client.GetNodes, private.GetNodesRequest()).nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Sends messages, each to its node; gives their ids.

        Raises:
            FedHybridError: The superlink ended or refuses.
        """
        pending = list(messages)
        if not pending:
            return []
        with private.no_object_id_recompute():
            for message in pending:
                private.number_message(message, message.object_id)
            request = private.PushAppMessagesRequest(
                messages_list=[private.message_to_proto(private.remove_content_from_message(m)) for m in pending],
                message_object_trees=[private.get_object_tree(m) for m in pending],
            )
            answer = self._ask(self._client.PushMessages, request)
            objects = {key: thing for m in pending for key, thing in private.get_all_nested_objects(m).items()}
            push = private.make_push_object_fn_protobuf(
                lambda request: self._ask(self._client.PushObject, request),
                self._node,
                self._run.run_id,
                answer.session_id,
            )
            private.push_objects(objects, push, object_ids_to_push=set(answer.objects_to_push))
        return list(answer.message_ids)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies to these messages that are there now; each is given once, so ask only for those that are still open.

        A reply whose content cannot be read, or of which nothing more has come for a minute, is an error message.
        For an id whose reply was given already the superlink makes up one, too, and for a node that is gone, once its
        heartbeat is overdue (14 to 20 s).
        """
        asked = list(message_ids)
        request = private.PullAppMessagesRequest(message_ids=[sent for sent in asked if sent not in self._coming])
        answer = self._ask(self._client.PullMessages, request)
        for proto, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            about = proto.metadata
            self._coming[about.reply_to_message_id] = _Coming(
                message_id=about.message_id,
                node_id=about.src_node_id,
                parts=[part.object_id for part in private.iterate_object_tree(tree)],
                until=Deadline(self._upload_s),
            )
        replies = [self._fetched(sent, self._coming[sent]) for sent in asked if sent in self._coming]
        return [reply for reply in replies if reply is not None]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Pushes messages and waits for their replies, at most `timeout` seconds."""
        waiting, replies, deadline = set(self.push_messages(messages)), list[Message](), Deadline(timeout)
        while waiting:
            found = self.pull_messages(waiting)
            replies += found
            waiting -= {reply.metadata.reply_to_message_id for reply in found}
            if deadline.passed:
                break
            if not found:
                time.sleep(deadline.within_s(_POLL_S))
        return replies

    def _fetched(self, sent: str, coming: _Coming) -> Message | None:
        """The reply to `sent`, or the word that it cannot be read; None while it is still on its way."""
        reply: Message | None = None
        try:
            if not self._all_there(coming):
                return None
            made = private.inflate_object_from_contents(coming.message_id, coming.contents)
            if not isinstance(made, Message) or (made.has_content() and not isinstance(made.content, RecordDict)):
                raise TypeError("it is no message with records")
            if (made.metadata.reply_to_message_id, made.metadata.src_node_id) != (sent, coming.node_id):
                raise ValueError("it is not from whom, or does not answer what, it was announced to")
            private.number_message(made, coming.message_id)
            reply = made
        except (FedHybridError, httpx.HTTPError):  # of the superlink, not of this reply
            raise
        except Exception as error:  # a node can send whatever it likes: Flower's reader raises anything
            reply = _unreadable(sent, coming, f"its reply cannot be read ({type(error).__name__}: {error!s:.300})")
        del self._coming[sent]
        confirmed = private.ConfirmMessageReceivedRequest(
            node=self._node, run_id=self._run.run_id, message_object_id=coming.message_id
        )
        self._ask(self._client.ConfirmMessageReceived, confirmed)
        return reply

    def _all_there(self, coming: _Coming) -> bool:
        """Fetches what is there of a reply and was not before.

        Raises:
            ObjectPullError: Something was refused, or nothing came for too long.
        """
        pull = private.make_pull_object_fn_protobuf(
            lambda request: self._ask(self._client.PullObject, request), self._node, self._run.run_id
        )
        refused: list[private.ObjectPullError] = []

        def kept(object_id: str) -> bytes:
            try:
                data = coming.contents[object_id] = pull(object_id)
            except private.ObjectPullError as error:
                refused.append(error)
                raise
            coming.until = Deadline(self._upload_s)
            return data

        missing = [part for part in coming.parts if part not in coming.contents]
        try:
            private.pull_objects(missing, kept, max_tries_per_object=1)
        except private.ObjectPullError:
            if refused:
                raise refused[0] from None
            if coming.until.passed:
                late = next(part for part in missing if part not in coming.contents)
                raise private.ObjectPullError(late, f"nothing came for {self._upload_s:g} s") from None
            return False
        return True

    def _ask(self, call: Any, request: Any) -> Any:
        for attempt in range(_TRIES):
            try:
                return call(request)
            except httpx.TransportError:
                self._superlink.check()
                if attempt == _TRIES - 1:
                    raise
                time.sleep(_ASK_AGAIN_S)
        raise AssertionError


def _unreadable(sent: str, coming: _Coming, why: str) -> Message:
    """The word about a reply, in its place."""
    asked = Message(RecordDict(), coming.node_id, MessageType.QUERY)
    private.number_message(asked, sent)
    return Message(Error(private.ErrorCode.UNKNOWN, why), reply_to=asked)


@contextmanager
def open_run_grid(superlink: Superlink, run_id: int, *, upload_s: float = _UPLOAD_S) -> Iterator[RunGrid]:
    """Takes the server's task of run `run_id` and gives the grid to do it with.

    On leaving, the run is finished: completed, or failed where an exception passes. One at a time in a process.

    Args:
        superlink: Running, and of this process: it knows the secret.
        run_id: From `control.start_run`.
        upload_s: How long to wait for the next piece of a reply's content.

    Raises:
        FedHybridError: The task is taken already, or the superlink ended.
    """
    token = _take_task(superlink, run_id)
    with owner_client(private.RuntimeHttpClient, superlink, _Token(token)) as client:
        given = client.PullTaskInput(private.PullTaskInputRequest())
        node_id = given.context.node_id
        grid = RunGrid(client, superlink, private.run_from_proto(given.run), node_id, upload_s=upload_s)
        heart = Heart(lambda: _beat(client), every_s=_BEAT_S, name="fedhybrid-run-heartbeat")
        private.be_task(run_id=given.run.run_id, task_id=given.task_id, node_id=node_id)
        status, details = private.TASK_FAILED, "the server's process ended early"
        try:
            yield grid
            status, details = private.TASK_COMPLETED, ""
        except Exception as error:
            details = f"{type(error).__name__}: {error}"
            raise
        finally:
            heart.stop()
            private.be_task(run_id=None, task_id=None, node_id=None)
            with suppress(httpx.HTTPError):  # a superlink that is gone needs no farewell
                client.PushTaskOutput(private.PushTaskOutputRequest(sub_status=status, details=details))


def _take_task(superlink: Superlink, run_id: int) -> str:
    with owner_client(private.RuntimeHttpClient, superlink, _Signature(superlink.secret)) as client:
        got = client.AcquireTask(private.AcquireTaskRequest(supported_task_types=[private.TASK_TYPE_SERVER]))
    if not got.HasField("task"):
        raise FedHybridError(f"run {run_id} has no task to take: it was taken already, or has ended")
    if got.task.run_id != run_id:
        raise FedHybridError(
            f"run {got.task.run_id} waits before run {run_id}: stop it first, a superlink serves one run at a time"
        )
    return str(got.token)


def _beat(client: private.RuntimeHttpClient) -> None:
    with suppress(httpx.HTTPError):  # the next call of the grid says what is wrong
        client.SendTaskHeartbeat(private.SendTaskHeartbeatRequest())


@final
class _Token:
    """Says in each call whose task this is."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept(self, context: private.ProtobufRequestContext, call_next: private.ProtobufCall) -> httpx.Response:
        context.request.headers[private.TASK_TOKEN_HEADER] = self._token
        return call_next(context)


@final
class _Signature:
    """Signs a call with the secret that the superlink was started with."""

    def __init__(self, secret: bytes) -> None:
        self._secret = private.derive_auth_secret(secret)

    def intercept(self, context: private.ProtobufRequestContext, call_next: private.ProtobufCall) -> httpx.Response:
        signed = private.create_superexec_auth_metadata(
            auth_secret=self._secret, method=context.rpc_method, request=context.message
        )
        context.request.headers.update(signed)
        return call_next(context)
