"""Every name of Flower that its documentation does not promise, in one place, checked when this is imported.

Flower documents ClientApp, ServerApp and their records, not the wire between its processes. What is used of it stands
here: the three HTTP clients, their protobuf messages, how records become objects on the wire, who a message is from.
Import is light (no FastAPI, no gRPC server, no event loop).
"""

from __future__ import annotations

import importlib.metadata
import ssl
from typing import Any

import httpx

from fedhybrid.errors import ConfigError
from fedhybrid.integrations.flower.version import SUPPORTED, require_flower

__all__ = [
    "FLEET_HTTP_PUBLIC_KEY_HEADER",
    "FLEET_HTTP_SIGNATURE_HEADER",
    "SUPERLINK_NODE_ID",
    "TASK_COMPLETED",
    "TASK_FAILED",
    "TASK_TOKEN_HEADER",
    "TASK_TYPE_SERVER",
    "TIMESTAMP_HEADER",
    "AcquireTaskRequest",
    "ActivateNodeRequest",
    "ConfirmMessageReceivedRequest",
    "ControlHttpClient",
    "DeactivateNodeRequest",
    "ErrorCode",
    "Fab",
    "FleetHttpClient",
    "GetNodesRequest",
    "ListNodesRequest",
    "Node",
    "NodeInfo",
    "ObjectPullError",
    "ObjectPushError",
    "ObjectTree",
    "ProtobufCall",
    "ProtobufClientInterceptor",
    "ProtobufRequestContext",
    "PullAppMessagesRequest",
    "PullMessagesRequest",
    "PullTaskInputRequest",
    "PushAppMessagesRequest",
    "PushMessagesRequest",
    "PushTaskOutputRequest",
    "RegisterNodeFleetRequest",
    "RegisterNodeRequest",
    "Run",
    "RuntimeHttpClient",
    "SendNodeHeartbeatRequest",
    "SendTaskHeartbeatRequest",
    "StartRunRequest",
    "StopRunRequest",
    "UnregisterNodeFleetRequest",
    "be_task",
    "connect_directly",
    "create_superexec_auth_metadata",
    "derive_auth_secret",
    "get_all_nested_objects",
    "get_object_tree",
    "inflate_object_from_contents",
    "iterate_object_tree",
    "make_pull_object_fn_protobuf",
    "make_push_object_fn_protobuf",
    "message_to_proto",
    "no_object_id_recompute",
    "number_message",
    "pull_objects",
    "push_objects",
    "remove_content_from_message",
    "run_from_proto",
    "sent_by_server",
]

require_flower()


def _problem(missing: str) -> str:
    found = importlib.metadata.version("flwr")
    return f"flwr {found} lacks what flwr {SUPPORTED} has ({missing}); pip install 'fedhybrid[flower]'"


try:
    from flwr.app import Message, Metadata
    from flwr.app.message import remove_content_from_message
    from flwr.common.constant import SUPERLINK_NODE_ID, TIMESTAMP_HEADER, ErrorCode, SubStatus
    from flwr.common.serde import message_to_proto, run_from_proto
    from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest, StopRunRequest
    from flwr.proto.fab_pb2 import Fab
    from flwr.proto.fleet_pb2 import (
        ActivateNodeRequest,
        DeactivateNodeRequest,
        PullMessagesRequest,
        PushMessagesRequest,
        RegisterNodeFleetRequest,
        UnregisterNodeFleetRequest,
    )
    from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
    from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
    from flwr.proto.node_pb2 import Node, NodeInfo
    from flwr.proto.runtime_pb2 import (
        AcquireTaskRequest,
        GetNodesRequest,
        PullAppMessagesRequest,
        PullTaskInputRequest,
        PushAppMessagesRequest,
        PushTaskOutputRequest,
        SendTaskHeartbeatRequest,
    )
    from flwr.supercore.auth import create_superexec_auth_metadata, derive_auth_secret
    from flwr.supercore.constant import (
        FLEET_HTTP_PUBLIC_KEY_HEADER,
        FLEET_HTTP_SIGNATURE_HEADER,
        TASK_TOKEN_HEADER,
        TaskType,
    )
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_tree,
        iterate_object_tree,
        no_object_id_recompute,
    )
    from flwr.supercore.inflatable.inflatable_protobuf_utils import (
        make_pull_object_fn_protobuf,
        make_push_object_fn_protobuf,
    )
    from flwr.supercore.inflatable.inflatable_utils import (
        ObjectPullError,
        ObjectPushError,
        inflate_object_from_contents,
        pull_objects,
        push_objects,
    )
    from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext
    from flwr.supercore.run import Run
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.supernode.fleet_http_client import FleetHttpClient

    TASK_TYPE_SERVER = str(TaskType.SERVER_APP.value)
    TASK_COMPLETED, TASK_FAILED = SubStatus.COMPLETED, SubStatus.FAILED
except (ImportError, AttributeError) as error:
    raise ConfigError(_problem(str(error))) from error


def number_message(message: Message, message_id: str) -> None:
    """Gives a message the id under which the server knows it."""
    message.metadata.__dict__["_message_id"] = message_id


def sent_by_server(message: Message) -> None:
    """Makes a message one of the server's own, as its word about a node that is not there."""
    message.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID


def be_task(*, run_id: int | None, task_id: int | None, node_id: int | None) -> None:
    """Says in whose name this process makes messages from now on; None is nobody's.

    Flower keeps it once for a process: a process drives one run at a time.
    """
    identity: Any = TaskIdentity
    identity.run_id, identity.task_id, identity.node_id = run_id, task_id, node_id


def connect_directly(
    client: FleetHttpClient | ControlHttpClient | RuntimeHttpClient, *, verify: ssl.SSLContext | bool, timeout_s: float
) -> None:
    """Gives a client its own TLS settings, and keeps it from going through the proxy that the environment names.

    Flower takes such proxies for every address, this machine included.
    """
    client.close()
    client._client = httpx.Client(verify=verify, timeout=timeout_s, trust_env=False)


def _probe() -> None:
    """Tries the names that are no functions: a message's id, the identity of its sender, a client's connection."""
    made = Metadata(
        run_id=1, message_id="probe", src_node_id=1, dst_node_id=2, reply_to_message_id="", group_id="", created_at=0.0,
        ttl=1.0, message_type="query",
    )  # fmt: skip
    lacking = [] if made.__dict__.get("_message_id") == "probe" else ["Metadata._message_id"]
    lacking += [f"TaskIdentity.{n}" for n in ("run_id", "task_id", "node_id") if f"_{n}" not in vars(TaskIdentity)]
    client = FleetHttpClient("http://localhost")
    lacking += [] if isinstance(getattr(client, "_client", None), httpx.Client) else ["ProtobufClient._client"]
    client.close()
    if lacking:
        raise ConfigError(_problem(", ".join(lacking)))


_probe()
