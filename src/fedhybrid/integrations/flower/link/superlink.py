"""The real `flower-superlink` as a child process: started, waited for, and surely stopped.

It is the post office of a deployment: devices pull messages from it and push replies, the server process pushes and
pulls at the other side. It runs with Flower's `process` isolation, so that it starts no worker of its own: the process
that holds the secret file takes the run's only task. Its state (registered nodes, runs, messages) is in memory and gone
with it; whoever starts one registers the nodes again.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, final

import httpx

from fedhybrid.errors import ConfigError, FedHybridError
from fedhybrid.integrations.flower.link import launch
from fedhybrid.integrations.flower.link.endpoint import Endpoint
from fedhybrid.integrations.flower.link.keys import KeyFolder
from fedhybrid.integrations.flower.link.waiting import Deadline
from fedhybrid.integrations.flower.version import OFFLINE

__all__ = ["Superlink"]

_LOG_LINES = 15  # of its log, in an error message
_TRIES = 3  # a free port may be taken by somebody else before the superlink binds it
_STOP_S = 5.0  # for a decent end, before it is killed
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "localhost", "": "127.0.0.1"}


@final
class Superlink:
    """Context manager round one superlink process.

    Args:
        folder: For its log, its secret and its Flower home; made if it is not there.
        keys: The deployment's certificates, from `keys.read_keys`; TLS is on and nodes are authenticated.
        host: Address to listen at; 0.0.0.0 is every IPv4 address of this machine.
        port: TCP port; 0 takes a free one.
        insecure: Plain HTTP and no authentication of nodes, for tests and closed networks; `keys` must be None then.
        node_auth: Whether only registered nodes get in. Needs `keys`.
        start_limit_s: How long it may take to answer.

    Raises:
        ConfigError: On entering: no script, no keys, the port is taken, or it ended; with the end of its log.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keys: KeyFolder | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        insecure: bool = False,
        node_auth: bool = True,
        start_limit_s: float = 60.0,
    ) -> None:
        if keys is None and not insecure:
            raise ConfigError(
                "a server needs keys (make them with `fedhybrid flower keys`), or must be told to be insecure"
            )
        if keys is not None and insecure:
            raise ConfigError(f"the keys in {keys.folder} are of no use to an insecure server: leave one of them out")
        self.folder = Path(folder).absolute()
        self._keys, self._host, self._wanted_port = keys, host, port
        self._node_auth = node_auth and keys is not None
        self._start_limit_s = start_limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._endpoint: Endpoint | None = None
        self._log_start_bytes = 0
        self.secret = b""

    @property
    def log_file(self) -> Path:
        """What it says."""
        return self.folder / "superlink.log"

    @property
    def secret_file(self) -> Path:
        """Random bytes that only this process and the superlink know; mode 0600."""
        return self.folder / "superlink.secret"

    @property
    def endpoint(self) -> Endpoint:
        """Where this process reaches it."""
        assert self._endpoint is not None, "not started"
        return self._endpoint

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.endpoint.port

    @property
    def pid(self) -> int:
        """Its process number."""
        assert self._process is not None, "not started"
        return self._process.pid

    def obituary(self) -> str | None:
        """None while it runs; else how it ended, with the end of its log."""
        code = None if self._process is None else self._process.poll()
        if code is None:
            return None
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"the superlink {how}; the end of {self.log_file}:\n{self._log_end()}"

    def check(self) -> None:
        """Raises `FedHybridError` if it does not run any more."""
        if (words := self.obituary()) is not None:
            raise FedHybridError(words)

    def __enter__(self) -> Self:
        script = Path(sys.executable).parent / "flower-superlink"
        if not script.is_file():
            raise ConfigError(
                f"{script} is needed but not there: install Flower for this Python, pip install 'fedhybrid[flower]'"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        for attempt in range(_TRIES):
            try:
                self._make_secret()
                port = self._wanted_port or _free_port(self._host)
                _refuse_taken_port(self._host, port)
                self._start(script, port)
                self._wait()
            except ConfigError:
                taken = "address already in use" in self._log_end().lower()
                self.stop()
                if self._wanted_port or not taken or attempt == _TRIES - 1:
                    raise
            except BaseException:
                self.stop()
                raise
            else:
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends it: asks, waits, kills. Does nothing where it has ended already."""
        with suppress(FileNotFoundError):
            self.secret_file.unlink()
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _make_secret(self) -> None:
        self.secret = secrets.token_bytes(32)
        with suppress(FileNotFoundError):
            self.secret_file.unlink()
        handle = os.open(self.secret_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(self.secret)

    def _start(self, script: Path, port: int) -> None:
        reachable = _EVERYWHERE.get(self._host, self._host)
        shown = f"[{reachable}]" if ":" in reachable else reachable
        ca_file = None if self._keys is None else self._keys.ca_certificate
        self._endpoint = Endpoint(address=f"{shown}:{port}", ca_file=ca_file, insecure=self._keys is None)
        words = ["--host", self._host, "--port", str(port), "--disable-runtime-dependency-installation"]
        words += ["--isolation", "process", "--superexec-auth-secret-file", str(self.secret_file)]
        if self._keys is None:
            words += ["--insecure"]
        else:
            words += ["--ssl-ca-certfile", str(self._keys.ca_certificate.absolute())]
            words += ["--ssl-certfile", str(self._keys.server_certificate.absolute())]
            words += ["--ssl-keyfile", str(self._keys.server_key.absolute())]
        if self._node_auth:
            words += ["--enable-supernode-auth"]
        home = self.folder / "flower-home"
        home.mkdir(exist_ok=True)
        command = [sys.executable, "-P", launch.__file__, str(os.getpid()), str(self.secret_file), str(script), *words]
        with self.log_file.open("ab") as log:
            self._log_start_bytes = log.tell()
            self._process = subprocess.Popen(
                command, cwd=self.folder, env={**os.environ, **OFFLINE, "FLWR_HOME": str(home)},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C is for the server's process, which then ends this one in order
            )  # fmt: skip

    def _wait(self) -> None:
        """Until its health check answers."""
        deadline, pause = Deadline(self._start_limit_s), threading.Event()
        with httpx.Client(verify=self.endpoint.tls(), trust_env=False, timeout=5.0) as client:
            while not deadline.passed:
                if (words := self.obituary()) is not None:
                    raise ConfigError(words)
                try:
                    if client.get(f"{self.endpoint.url}/health").is_success:
                        return
                except httpx.TransportError:
                    pass
                pause.wait(0.05)
        raise ConfigError(
            f"the superlink did not answer at {self.endpoint.address} within {self._start_limit_s:g} s; "
            f"the end of {self.log_file}:\n{self._log_end()}"
        )

    def _log_end(self) -> str:
        try:
            lines = self.log_file.read_bytes()[self._log_start_bytes :].decode("utf-8", "replace").splitlines()
        except OSError:
            return "(no log)"
        return "\n".join(f"  {line}" for line in lines[-_LOG_LINES:]) or "  (nothing)"


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        _bind(probe, host, 0)
        return int(probe.getsockname()[1])


def _refuse_taken_port(host: str, port: int) -> None:
    """A server that is there already would answer in place of ours, so it is looked for first."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(probe, host, port)


def _bind(probe: socket.socket, host: str, port: int) -> None:
    try:
        probe.bind((host, port))
    except OSError as error:
        raise ConfigError(f"cannot listen at {host}:{port}: {error.strerror}; choose another host or port") from error
