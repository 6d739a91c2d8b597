"""What the owner of a superlink asks of it: register nodes, start and stop a run, list the nodes.

Flower ties everything to a run, and a run to an app in a zip file. Ours is a label: one configuration file without code
and without dependencies, because the server's work is done by the process that asks, and the devices' by their own
long-lived client.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, final

import httpx

from fedhybrid.errors import FedHybridError
from fedhybrid.integrations.flower import private
from fedhybrid.integrations.flower.link.endpoint import Endpoint, lasting_problem, passing_problem, refusal_code
from fedhybrid.integrations.flower.link.launch import CONTROL_HEADER, control_token
from fedhybrid.integrations.flower.link.superlink import Superlink

__all__ = [
    "NodeState",
    "OwnerHeader",
    "list_nodes",
    "owner_client",
    "register_nodes",
    "start_run",
    "stop_run",
    "tiny_app",
]

_Client = TypeVar("_Client", private.ControlHttpClient, private.RuntimeHttpClient)
_LIMIT_S = 30.0
_APP = """\
[project]
name = "fedhybrid"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "fedhybrid"

[tool.flwr.app.components]
serverapp = "fedhybrid:app"
clientapp = "fedhybrid:app"
"""


@dataclass(frozen=True, kw_only=True)
class NodeState:
    """A node as the superlink sees it.

    Attributes:
        node_id: Its number until the superlink ends.
        public_key: As in `keys.read_public_key`.
        online: Whether its heartbeat was heard lately.
    """

    node_id: int
    public_key: bytes
    online: bool


@final
class OwnerHeader:
    """Adds to each call the header that only the superlink's owner can make."""

    def __init__(self, secret: bytes) -> None:
        self._token = control_token(secret)

    def intercept(self, context: private.ProtobufRequestContext, call_next: private.ProtobufCall) -> httpx.Response:
        """Called by Flower's client round each request."""
        context.request.headers[CONTROL_HEADER] = self._token
        return call_next(context)


@contextmanager
def owner_client(
    kind: type[_Client], superlink: Superlink, *interceptors: private.ProtobufClientInterceptor
) -> Iterator[_Client]:
    """A client for one of the superlink's interfaces; what goes wrong inside is said in our words.

    Raises:
        FedHybridError: The superlink ended, does not answer or refuses; with its reason.
    """
    endpoint = superlink.endpoint
    client = kind(endpoint.url, interceptors=(OwnerHeader(superlink.secret), *interceptors), timeout=_LIMIT_S)
    private.connect_directly(client, verify=endpoint.tls(), timeout_s=_LIMIT_S)
    try:
        yield client
    except httpx.HTTPError as error:
        superlink.check()
        raise FedHybridError(_sentence(error, endpoint)) from error
    finally:
        client.close()


def register_nodes(superlink: Superlink, public_keys: Sequence[bytes]) -> tuple[int, ...]:
    """Lets in the nodes with these keys; those that are registered already keep their numbers.

    Args:
        superlink: Running.
        public_keys: As read by `keys.read_public_key`.

    Returns:
        Node ids, one for each key.
    """
    with owner_client(private.ControlHttpClient, superlink) as client:
        known = {node.public_key: node.node_id for node in _nodes(client)}
        for key in public_keys:
            if key not in known:
                known[key] = client.RegisterNode(private.RegisterNodeRequest(public_key=key)).node_id
        return tuple(known[key] for key in public_keys)


def list_nodes(superlink: Superlink) -> tuple[NodeState, ...]:
    """All registered nodes, and whether they are there."""
    with owner_client(private.ControlHttpClient, superlink) as client:
        return tuple(_nodes(client))


def start_run(superlink: Superlink) -> int:
    """Opens a run, which waits for its server to take it (`grid.open_run_grid`); gives its id."""
    content = tiny_app()
    app = private.Fab(hash_str=hashlib.sha256(content).hexdigest(), content=content)
    with owner_client(private.ControlHttpClient, superlink) as client:
        answer = client.StartRun(private.StartRunRequest(fab=app))
        if not answer.HasField("run_id"):
            raise FedHybridError(
                f"the superlink at {superlink.endpoint.address} started no run: see {superlink.log_file}"
            )
        return answer.run_id


def stop_run(superlink: Superlink, run_id: int) -> None:
    """Ends a run that nobody will go on with; its undelivered messages are dropped."""
    with owner_client(private.ControlHttpClient, superlink) as client:
        client.StopRun(private.StopRunRequest(run_id=run_id))


def tiny_app() -> bytes:
    """The smallest Flower app bundle: the same bytes each time."""
    listed = f"pyproject.toml,{hashlib.sha256(_APP.encode()).hexdigest()},{len(_APP.encode()) * 8}"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in (("pyproject.toml", _APP), (".info/CONTENT", listed)):
            file.writestr(zipfile.ZipInfo(name), text)
    return packed.getvalue()


def _nodes(client: private.ControlHttpClient) -> list[NodeState]:
    answer = client.ListNodes(private.ListNodesRequest())
    return [
        NodeState(node_id=n.node_id, public_key=n.public_key, online=n.status == "online") for n in answer.nodes_info
    ]


def _sentence(error: httpx.HTTPError, endpoint: Endpoint) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        what = f"HTTP {error.response.status_code}, Flower's code {refusal_code(error)}"
        said = error.response.text[:200].strip()
        return f"the superlink at {endpoint.address} refused {error.request.url.path} ({what}): {said}"
    return lasting_problem(error, endpoint) or passing_problem(error, endpoint)
