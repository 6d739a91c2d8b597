"""Replies over a real superlink that come in pieces, in part, or as something else: no node holds up another's."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fedhybrid.integrations.flower import private
from fedhybrid.integrations.flower.link.connection import FleetConnection
from fedhybrid.integrations.flower.link.control import start_run
from fedhybrid.integrations.flower.link.endpoint import Endpoint
from fedhybrid.integrations.flower.link.grid import open_run_grid
from fedhybrid.integrations.flower.link.superlink import Superlink

LIMIT_S = 30.0


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Superlink]:
    with Superlink(tmp_path_factory.mktemp("superlink"), insecure=True) as running:
        yield running


def connected(superlink: Superlink) -> FleetConnection:
    return FleetConnection(Endpoint(address=superlink.endpoint.address, insecure=True), patience_s=LIMIT_S)


def content(data: bytes) -> RecordDict:
    array = Array(dtype="uint8", shape=(len(data),), stype="fedhybrid.bundle", data=data)
    return RecordDict({"fedhybrid": ConfigRecord({"header": "{}"}), "tensors": ArrayRecord({"bundle": array})})


def data_of(message: Message) -> bytes:
    return message.content.array_records["tensors"]["bundle"].data


def wait_for(condition: Callable[[], object], what: str) -> None:
    end_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end_s, f"waited {LIMIT_S:g} s for: {what}"
        time.sleep(0.02)


def announce(
    connection: FleetConnection, reply: Message, tree: private.ObjectTree | None = None, answers: str = ""
) -> Callable[[dict[str, bytes]], None]:
    """Announces a reply without its content; gives what sends that.

    Args:
        connection: The device's.
        reply: Its answer.
        tree: Of what comes instead of it.
        answers: The message that the superlink is told it answers.
    """
    member, node = connection._membership, private.Node(node_id=connection.node_id)
    with private.no_object_id_recompute():
        tree = tree or private.get_object_tree(reply)
        private.number_message(reply, tree.object_id)
        announced = private.message_to_proto(private.remove_content_from_message(reply))
        announced.metadata.reply_to_message_id = answers or announced.metadata.reply_to_message_id
        request = private.PushMessagesRequest(node=node, messages_list=[announced], message_object_trees=[tree])
        answer = member.client.PushMessages(request)
    push = private.make_push_object_fn_protobuf(
        member.client.PushObject, node, reply.metadata.run_id, answer.session_id
    )

    def send(objects: dict[str, bytes]) -> None:
        for object_id, data in objects.items():
            push(object_id, data)

    return send


def objects_of(thing: Message | RecordDict) -> dict[str, bytes]:
    with private.no_object_id_recompute():
        return {key: part.deflate() for key, part in private.get_all_nested_objects(thing).items()}


def test_a_reply_whose_content_never_comes_holds_up_nobody(superlink: Superlink) -> None:
    with (
        open_run_grid(superlink, start_run(superlink), upload_s=1.0) as grid,
        connected(superlink) as other,
        connected(superlink) as halfway,
    ):
        wait_for(lambda: {halfway.node_id, other.node_id} <= set(grid.get_node_ids()), "both nodes to be online")
        (half,) = grid.push_messages([Message(content(b"half"), halfway.node_id, "train.fedhybrid")])
        message = halfway.receive(LIMIT_S)
        assert message is not None
        announce(halfway, Message(content(b"never comes"), reply_to=message))
        (whole,) = grid.push_messages([Message(content(b"whole"), other.node_id, "train.fedhybrid")])
        message = other.receive(LIMIT_S)
        assert message is not None
        assert other.send(Message(content(b"elohw"), reply_to=message))
        replies: dict[str, Message] = {}
        longest_s = 0.0

        def look() -> bool:
            nonlocal longest_s
            start_s = time.monotonic()
            found = grid.pull_messages({half, whole} - replies.keys())
            longest_s = max(longest_s, time.monotonic() - start_s)
            replies.update({reply.metadata.reply_to_message_id: reply for reply in found})
            return len(replies) == 2

        wait_for(look, "both replies")
        assert list(replies) == [whole, half]
        assert data_of(replies[whole]) == b"elohw"
        assert replies[half].has_error()
        assert "nothing came for 1 s" in replies[half].error.reason
        assert replies[half].metadata.src_node_id == halfway.node_id
        assert longest_s < 1.0
        assert grid.pull_messages([]) == []


def test_a_reply_that_comes_slowly_is_given_when_it_is_there(superlink: Superlink) -> None:
    with (
        open_run_grid(superlink, start_run(superlink), upload_s=LIMIT_S) as grid,
        connected(superlink) as slow,
    ):
        wait_for(grid.get_node_ids, "the node to be online")
        (sent,) = grid.push_messages([Message(content(b"work"), slow.node_id, "train.fedhybrid")])
        message = slow.receive(LIMIT_S)
        assert message is not None
        answer = Message(content(b"done"), reply_to=message)
        send = announce(slow, answer)
        for key, data in objects_of(answer).items():
            assert grid.pull_messages([sent]) == []
            send({key: data})
        (reply,) = grid.pull_messages([sent])
        assert data_of(reply) == b"done"


def junk(connection: FleetConnection, message: Message) -> None:
    with private.no_object_id_recompute():
        head, _, body = Message(Error(0, "why"), reply_to=message).deflate().partition(b"\0")
    data = head + b"\0" + b"\xff" * len(body)  # the superlink reads no further than the head
    tree = private.ObjectTree(object_id=hashlib.sha256(data).hexdigest())
    announce(connection, Message(content(b""), reply_to=message), tree)({tree.object_id: data})


def a_record_dict(connection: FleetConnection, message: Message) -> None:
    records = content(b"no message")
    with private.no_object_id_recompute():
        tree = private.get_object_tree(records)
    announce(connection, Message(content(b""), reply_to=message), tree)(objects_of(records))


def an_answer_to_another(connection: FleetConnection, message: Message) -> None:
    reply = Message(content(b"of another"), reply_to=message)
    reply.metadata.__dict__["_reply_to_message_id"] = "f" * 64
    objects = objects_of(reply)
    announce(connection, reply, answers=message.metadata.message_id)(objects)


@pytest.mark.parametrize("send", [junk, a_record_dict, an_answer_to_another])
def test_a_reply_that_cannot_be_read_is_an_error_of_its_own(
    superlink: Superlink, send: Callable[[FleetConnection, Message], None]
) -> None:
    with open_run_grid(superlink, start_run(superlink)) as grid, connected(superlink) as connection:
        wait_for(grid.get_node_ids, "the node to be online")
        node_id = connection.node_id
        bad, good = grid.push_messages([Message(content(b"%d" % n), node_id, "train.fedhybrid") for n in range(2)])
        received: dict[str, Message] = {}
        for _ in range(2):
            message = connection.receive(LIMIT_S)
            assert message is not None
            received[message.metadata.message_id] = message
        send(connection, received[bad])
        assert connection.send(Message(content(b"fine"), reply_to=received[good]))
        replies: dict[str, Message] = {}

        def look() -> bool:
            found = grid.pull_messages({bad, good} - replies.keys())
            replies.update({reply.metadata.reply_to_message_id: reply for reply in found})
            return len(replies) == 2

        wait_for(look, "both replies")
        assert replies[bad].has_error()
        assert "its reply cannot be read" in replies[bad].error.reason
        assert replies[bad].metadata.src_node_id == node_id
        assert data_of(replies[good]) == b"fine"
