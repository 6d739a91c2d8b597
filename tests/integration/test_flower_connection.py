"""A superlink, its owner and its devices as real processes on this machine, with TLS and authentication of nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedhybrid.errors import ConfigError, FedHybridError
from fedhybrid.integrations.flower.link import membership
from fedhybrid.integrations.flower.link import superlink as superlink_module
from fedhybrid.integrations.flower.link.connection import FleetConnection
from fedhybrid.integrations.flower.link.control import list_nodes, register_nodes, start_run, stop_run, tiny_app
from fedhybrid.integrations.flower.link.endpoint import Endpoint
from fedhybrid.integrations.flower.link.grid import RunGrid, open_run_grid
from fedhybrid.integrations.flower.link.keys import KeyFolder, make_keys, read_public_key
from fedhybrid.integrations.flower.link.superlink import Superlink

LIMIT_S = 30.0


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be fetched by its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for(condition: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, f"waited {limit_s:g} s for: {what}"
        time.sleep(0.02)


def content(data: bytes) -> RecordDict:
    array = Array(dtype="uint8", shape=(len(data),), stype="fedhybrid.bundle", data=data)
    return RecordDict({"fedhybrid": ConfigRecord({"header": "{}"}), "tensors": ArrayRecord({"bundle": array})})


def data_of(message: Message) -> bytes:
    return message.content.array_records["tensors"]["bundle"].data


def ask(grid: RunGrid, node_id: int, data: bytes) -> bytes:
    (reply,) = grid.send_and_receive([Message(content(data), node_id, "train.fedhybrid")], timeout=LIMIT_S)
    assert reply.has_content(), reply
    return data_of(reply)


@dataclass
class Echo:
    """A device that answers each message with its bytes turned round."""

    endpoint: Endpoint
    key_file: Path
    said: list[str] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    connection: FleetConnection | None = None

    def __enter__(self) -> Echo:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.connection is not None:
            self.connection.close()
        self._thread.join()
        assert self.errors == []

    def _run(self) -> None:
        try:
            self.connection = FleetConnection(
                self.endpoint, key_file=self.key_file, patience_s=LIMIT_S, said=self.said.append
            )
            with self.connection as connection:
                while (message := connection.receive()) is not None:
                    connection.send(Message(content(data_of(message)[::-1]), reply_to=message))
        except BaseException as error:
            self.errors.append(error)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFolder:
    return make_keys(tmp_path_factory.mktemp("keys"), nodes=["known", "second", "unknown"])


@pytest.fixture(scope="module")
def superlink(keys: KeyFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Superlink]:
    with Superlink(tmp_path_factory.mktemp("superlink"), keys=keys) as running:
        register(running, keys)
        yield running
        pid = running.pid
    assert not alive(pid)


@pytest.fixture
def grid(superlink: Superlink) -> Iterator[RunGrid]:
    with open_run_grid(superlink, start_run(superlink)) as opened:
        yield opened


def register(superlink: Superlink, keys: KeyFolder) -> tuple[int, ...]:
    return register_nodes(superlink, [read_public_key(keys.node_public_key(name)) for name in ("known", "second")])


def refusal(endpoint: Endpoint, key_file: Path | None) -> str:
    with pytest.raises(ConfigError) as caught, FleetConnection(endpoint, key_file=key_file, patience_s=1.0):
        pass
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_messages_of_any_size_go_there_and_back(superlink: Superlink, keys: KeyFolder, grid: RunGrid) -> None:
    with Echo(superlink.endpoint, keys.node_key("known")) as device:
        wait_for(grid.get_node_ids, "the node to be online")
        (node_id,) = grid.get_node_ids()
        for data in (b"", b"few", os.urandom(1_000_000)):
            assert ask(grid, node_id, data) == data[::-1]
        start_s = time.monotonic()
        for _ in range(5):
            ask(grid, node_id, b"quick")
        assert (time.monotonic() - start_s) / 5 < 2.0  # 0.2 s on an idle machine; Flower's own node takes 3 s and more
        assert device.connection is not None
        assert device.connection.node_id == node_id
    assert [node.online for node in list_nodes(superlink)].count(True) == 0
    assert device.said == [f"connected to {superlink.endpoint.address} as node {node_id}"]


def test_many_messages_wait_in_line(superlink: Superlink, keys: KeyFolder, grid: RunGrid) -> None:
    with Echo(superlink.endpoint, keys.node_key("known")), Echo(superlink.endpoint, keys.node_key("second")):
        wait_for(lambda: len(grid.get_node_ids()) == 2, "both nodes to be online")
        sent = {
            message_id: text
            for node_id in grid.get_node_ids()
            for text in (b"one", b"two")
            for message_id in grid.push_messages([Message(content(text + b"%d" % node_id), node_id, "query.fedhybrid")])
        }
        waiting, replies = set(sent), list[Message]()
        while waiting:
            replies += grid.pull_messages(waiting)
            waiting -= {reply.metadata.reply_to_message_id for reply in replies}
    for reply in replies:
        text = sent[reply.metadata.reply_to_message_id]
        assert data_of(reply)[::-1] == text + b"%d" % reply.metadata.src_node_id


def test_registering_again_keeps_the_numbers(superlink: Superlink, keys: KeyFolder) -> None:
    numbers = register(superlink, keys)
    assert register(superlink, keys) == numbers
    assert {node.node_id for node in list_nodes(superlink)} == set(numbers)


def test_an_unregistered_node_is_told_so(superlink: Superlink, keys: KeyFolder) -> None:
    assert refusal(superlink.endpoint, keys.node_key("unknown")) == (
        f"this node's key is not registered at {superlink.endpoint.address}: give {keys.node_public_key('unknown')} "
        "to whoever runs the server, to be put among its nodes"
    )
    assert refusal(superlink.endpoint, None).endswith("takes registered nodes only: give this node's key")


def test_a_server_of_another_authority_is_refused(superlink: Superlink, keys: KeyFolder, tmp_path: Path) -> None:
    other = make_keys(tmp_path)
    said = refusal(replace(superlink.endpoint, ca_file=other.ca_certificate), keys.node_key("known"))
    where = f"the certificate of the server at {superlink.endpoint.address}"
    assert said == f"{where} is not signed by the CA in {other.ca_certificate}: take the ca.crt of this server"
    said = refusal(replace(superlink.endpoint, ca_file=None), keys.node_key("known"))
    assert said == f"{where} is not signed by an authority that this machine knows: give the ca.crt of this server"


def test_plain_http_at_a_tls_server_is_told_so(superlink: Superlink, keys: KeyFolder) -> None:
    said = refusal(Endpoint(address=superlink.endpoint.address, insecure=True), keys.node_key("known"))
    assert said == f"the server at {superlink.endpoint.address} speaks TLS: connect with its ca.crt, not with insecure"


def test_an_address_where_nothing_answers_is_told_so(superlink: Superlink, keys: KeyFolder) -> None:
    said = refusal(replace(superlink.endpoint, address="127.0.0.1:9"), keys.node_key("known"))
    assert said == "nothing answers at 127.0.0.1:9: is the server running there, on that port?"
    for address in ("127.0.0.1", "host:0", "host:65536", "http://host:80", "two words:80", "::1:80"):
        with pytest.raises(ConfigError, match="HOST:PORT is needed"):
            Endpoint(address=address)
    assert Endpoint(address="[::1]:80").host == "::1"


def test_a_wrong_clock_is_made_up_for(superlink: Superlink, keys: KeyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    true_now = membership.utc_now
    monkeypatch.setattr(membership, "utc_now", lambda: true_now() + timedelta(seconds=100))
    said: list[str] = []
    with FleetConnection(superlink.endpoint, key_file=keys.node_key("known"), said=said.append) as connection:
        assert connection.receive(0.0) is None
    assert "this machine's clock and that of" in said[0]
    assert "connected to" in said[1]


def test_a_key_lets_one_process_in(superlink: Superlink, keys: KeyFolder) -> None:
    with FleetConnection(superlink.endpoint, key_file=keys.node_key("known")):
        assert "another process uses this node's key" in refusal(superlink.endpoint, keys.node_key("known"))


def test_only_the_owner_asks_for_runs_and_nodes(superlink: Superlink) -> None:
    with httpx.Client(verify=superlink.endpoint.tls(), trust_env=False, base_url=superlink.endpoint.url) as stranger:
        for path in ("/v1/control/register-node", "/v1/control/start-run", "/v1/runtime/acquire-task", "/docs"):
            assert stranger.post(path, content=b"").status_code == httpx.codes.FORBIDDEN
        assert stranger.get("/health").status_code == httpx.codes.OK
    assert superlink.secret_file.stat().st_mode & 0o777 == 0o600


def test_a_run_is_taken_once_and_its_end_is_known(superlink: Superlink, keys: KeyFolder) -> None:
    first = start_run(superlink)
    with pytest.raises(KeyError), open_run_grid(superlink, first):
        raise KeyError("the server's own mistake")
    with pytest.raises(FedHybridError, match="was taken already, or has ended"), open_run_grid(superlink, first):
        pass
    waiting = start_run(superlink)
    with (
        pytest.raises(FedHybridError, match=f"run {waiting} waits before run {first}"),
        open_run_grid(superlink, first),
    ):
        pass
    stop_run(superlink, waiting)
    assert tiny_app() == tiny_app()


def test_a_reply_to_a_run_that_has_ended_is_dropped(superlink: Superlink, keys: KeyFolder) -> None:
    said: list[str] = []
    with FleetConnection(superlink.endpoint, key_file=keys.node_key("known"), said=said.append) as connection:
        with open_run_grid(superlink, start_run(superlink)) as grid:
            grid.push_messages([Message(content(b"late"), connection.node_id, "train.fedhybrid")])
            message = connection.receive(LIMIT_S)
            assert message is not None
        assert connection.send(Message(content(b"answer"), reply_to=message)) is False
        assert connection.receive(0.2) is None  # and goes on living
    assert said[-1] == "a reply was dropped: its run has ended"


def killed_in_mid_run(superlink: Superlink) -> None:
    with open_run_grid(superlink, start_run(superlink)) as grid:
        wait_for(grid.get_node_ids, "the node to be online")
        assert ask(grid, grid.get_node_ids()[0], b"before") == b"erofeb"
        os.kill(superlink.pid, signal.SIGKILL)
        grid.get_node_ids()


def test_a_server_that_is_killed_and_started_again(keys: KeyFolder, tmp_path: Path) -> None:
    with Superlink(tmp_path, keys=keys) as first:
        register(first, keys)
        with Echo(first.endpoint, keys.node_key("known")) as device:
            with pytest.raises(FedHybridError, match=r"(?s)was ended by signal 9; the end of .*superlink\.log"):
                killed_in_mid_run(first)
            with Superlink(tmp_path, keys=keys, port=first.port) as second:
                wait_for(
                    lambda: any("does not know this node's key yet" in s for s in device.said), "the node to knock"
                )
                register(second, keys)
                with open_run_grid(second, start_run(second)) as g:
                    wait_for(g.get_node_ids, "the node to come back")
                    assert ask(g, g.get_node_ids()[0], b"after") == b"retfa"


def test_a_server_without_tls(keys: KeyFolder, tmp_path: Path) -> None:
    with Superlink(tmp_path, insecure=True) as plain, open_run_grid(plain, start_run(plain)) as grid:
        with (
            FleetConnection(plain.endpoint) as nameless,
            FleetConnection(plain.endpoint, key_file=keys.node_key("unknown")) as named,
        ):
            assert set(grid.get_node_ids()) == {nameless.node_id, named.node_id}
        said = refusal(Endpoint(address=plain.endpoint.address, ca_file=keys.ca_certificate), keys.node_key("known"))
        assert said == (
            f"the server at {plain.endpoint.address} does not speak TLS: start it with keys, or connect with insecure"
        )


def test_a_server_that_cannot_start_says_why(superlink: Superlink, keys: KeyFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen at .*: Address already in use; choose another host or port"):
        Superlink(tmp_path, keys=keys, port=superlink.port).__enter__()
    broken = make_keys(tmp_path / "broken")
    broken.server_key.write_text("damaged after it was checked")
    with pytest.raises(
        ConfigError, match=r"(?s)superlink ended with exit code 1; the end of .*superlink\.log:.*SSLError"
    ):
        Superlink(tmp_path, keys=broken).__enter__()
    assert not list(tmp_path.glob("*.secret"))
    with pytest.raises(ConfigError, match="needs keys"):
        Superlink(tmp_path)
    with pytest.raises(ConfigError, match="of no use to an insecure server"):
        Superlink(tmp_path, keys=keys, insecure=True)


def test_a_port_that_is_snatched_away_is_no_obstacle(
    superlink: Superlink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports, free_port = [superlink.port], superlink_module._free_port
    monkeypatch.setattr(superlink_module, "_refuse_taken_port", lambda host, port: None)
    monkeypatch.setattr(superlink_module, "_free_port", lambda host: ports.pop() if ports else free_port(host))
    with Superlink(tmp_path, insecure=True) as plain:
        assert not ports
        assert plain.port != superlink.port
        assert list_nodes(plain) == ()
        stop_run(plain, start_run(plain))


def test_nothing_is_left_of_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from fedhybrid.integrations.flower.link.superlink import Superlink\n"
        "with Superlink(sys.argv[1], insecure=True) as s: print(s.pid, flush=True); time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    wait_for(lambda: not alive(pid), "the superlink to follow its parent", 10.0)
    left = [path for path in Path("/proc").glob("[0-9]*") if str(tmp_path).encode() in cmdline(path)]
    assert left == []


def cmdline(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_device_imports_little() -> None:
    code = (
        "import sys, fedhybrid.integrations.flower.link.connection\n"
        "heavy = {'torch', 'ray', 'fastapi', 'uvicorn', 'sqlalchemy', 'pydantic', 'requests', 'starlette', 'sklearn'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_killed_node_is_reported_by_the_superlink(superlink: Superlink, keys: KeyFolder, grid: RunGrid) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from fedhybrid.integrations.flower.link.connection import FleetConnection\n"
        "from fedhybrid.integrations.flower.link.endpoint import Endpoint\n"
        "at = Endpoint(address=sys.argv[1], ca_file=Path(sys.argv[2]))\n"
        "with FleetConnection(at, key_file=sys.argv[3]) as c: c.receive(); print('got it', flush=True); c.receive()"
    )
    where = [superlink.endpoint.address, str(keys.ca_certificate), str(keys.node_key("known"))]
    with subprocess.Popen([sys.executable, "-c", code, *where], stdout=subprocess.PIPE, text=True) as device:
        wait_for(grid.get_node_ids, "the node to be online")
        sent = grid.push_messages([Message(content(b"work"), grid.get_node_ids()[0], "train.fedhybrid")])
        assert device.stdout is not None
        assert device.stdout.readline() == "got it\n"
        device.kill()
    replies: list[Message] = []
    wait_for(lambda: replies.extend(grid.pull_messages(sent)) or replies, "the word that it is gone", 40.0)
    assert replies[0].has_error()
    assert replies[0].metadata.reply_to_message_id == sent[0]
    assert grid.get_node_ids() == []
    with Echo(superlink.endpoint, keys.node_key("known")):  # the same key comes back
        wait_for(grid.get_node_ids, "the node to come back")
        assert ask(grid, grid.get_node_ids()[0], b"again") == b"niaga"
