"""A server and its nodes as processes of their own, in one folder, on this machine alone; all are gone at the end.

Every process carries the folder in its environment (TMPDIR and HOME lie in it), and so do those that it starts: that is
how the ones that are left are found.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tomli_w

from fedhybrid.records import ClientRecord, RoundRecord, read_jsonl

START_S = 120.0  # for what takes five to ten seconds on a machine that does nothing else
RUN_S = 240.0
_LOG_LINES = 25


@dataclass
class Program:
    """A process whose words go to a file."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    killed: bool = False

    @property
    def said(self) -> str:
        """All that it has written."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_to_say(self, words: str, within_s: float = START_S) -> re.Match[str]:
        """Waits for words, a regular expression; fails early where the process ends without them."""
        end_s = time.monotonic() + within_s
        while True:
            ended = self.process.poll() is not None
            found = re.search(words, self.said)
            if found is not None:
                return found
            assert not ended, f"{self.name} ended with {self.process.returncode} before {words!r}:\n{self.tail}"
            assert time.monotonic() < end_s, f"{self.name} has not said {words!r} in {within_s:g} s:\n{self.tail}"
            time.sleep(0.02)

    def wait_to_end(self, within_s: float = START_S) -> int:
        """Its exit code."""
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} has not ended in {within_s:g} s:\n{self.tail}") from None

    @property
    def tail(self) -> str:
        """The end of what it said, for a message."""
        return "\n".join(f"  {self.name}: {line}" for line in self.said.splitlines()[-_LOG_LINES:])

    @property
    def ended(self) -> bool:
        """Whether it has."""
        return self.process.poll() is not None

    @property
    def died(self) -> bool:
        """Whether it has ended badly, and not by `kill`."""
        return not self.killed and self.process.poll() not in (None, 0)

    def kill(self) -> None:
        """As a power cut does: without a word."""
        self.killed = True
        self.process.kill()
        self.process.wait()


@dataclass
class Deployment:
    """Context manager: one server, its keys and its nodes.

    Attributes:
        folder: Of all its files; of nobody else.
        recipe: What the server runs.
        prefix: Words before each command, such as a program that puts it into a network of its own.
    """

    folder: Path
    recipe: dict[str, Any]
    prefix: Sequence[str] = ()
    programs: list[Program] = field(default_factory=list)
    address: str = ""

    def __enter__(self) -> Self:
        self.folder = self.folder.resolve()
        (self.folder / "tmp").mkdir(parents=True)
        (self.folder / "recipe.toml").write_text(tomli_w.dumps(self.recipe))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for program in self.programs:
            if not program.ended:
                program.kill()
        try:
            if kind is None:
                self.wait_until(lambda: not self.left(), "everything to end", 15.0, may_die=self.programs)
        finally:
            for pid in self.left():
                os.kill(pid, signal.SIGKILL)

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / "run"

    @property
    def port(self) -> str:
        """Where the server listens."""
        return self.address.rpartition(":")[2]

    def start(self, name: str, *words: str | Path, env: Mapping[str, str] | None = None) -> Program:
        """`fedhybrid flower` with these words, under a name of the test's own."""
        log = self.folder / f"{name}.log"
        command = [*self.prefix, sys.executable, "-m", "fedhybrid", "flower", *(str(word) for word in words)]
        mine = {"HOME": str(self.folder), "TMPDIR": str(self.folder / "tmp"), "OMP_NUM_THREADS": "1"}
        with log.open("ab") as out:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**os.environ, **mine, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.programs.append(Program(name, process, log))
        return self.programs[-1]

    def make_keys(self, *nodes: str, folder: str = "keys") -> Path:
        """Keys for these nodes; the folder."""
        made = self.start(f"make-{folder}", "keys", folder, "--nodes", ",".join(nodes))
        assert made.wait_to_end() == 0, made.tail
        return self.folder / folder

    def serve(self, *words: str, nodes: int, name: str = "server") -> Program:
        """The server, when it listens; once it has an address it takes the same one again."""
        where = ("--port", self.port or "0", "--keys", "keys", "--out", self.run)
        server = self.start(name, "serve", "recipe.toml", *where, "--nodes", str(nodes), *words)
        self.address = server.wait_to_say(r"listening at (\S+) with TLS and node authentication")[1]
        return server

    def join(
        self,
        name: str,
        *words: str,
        budget: str = "100%",
        ca: str = "keys/ca.crt",
        key: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Program:
        """A node under a name, which is that of its key, its home and its log, too."""
        secure = ("--ca", ca, "--key", key or f"keys/nodes/{name}.key", "--home", f"home-{name}")
        what = ("--name", name, "--budget", budget, "--device", "raspberry-pi-4")
        return self.start(name, "join", self.address, *secure, *what, *words, env=env)

    def await_end(self, server: Program, *, may_die: Sequence[Program] = (), within_s: float = RUN_S) -> None:
        """Waits for the server's end; fails early where a node dies before, and shows what everybody said."""
        self.wait_until(lambda: server.ended, "the run to end", within_s, may_die=(server, *may_die))
        assert server.process.returncode == 0, self.tails

    def wait_until(
        self, condition: Callable[[], object], what: str, within_s: float = START_S, *, may_die: Sequence[Program] = ()
    ) -> None:
        """Waits for a condition; fails early where a program dies before."""
        end_s = time.monotonic() + within_s
        while not condition():
            dead = [each.name for each in self.programs if each.died and each not in may_die]
            assert not dead, f"waiting for {what}: {', '.join(dead)} died:\n{self.tails}"
            assert time.monotonic() < end_s, f"waited {within_s:g} s for {what}:\n{self.tails}"
            time.sleep(0.02)

    @property
    def tails(self) -> str:
        """The ends of all logs."""
        return "\n".join(program.tail for program in self.programs)

    def tasks(self) -> list[ClientRecord]:
        """Those that have ended so far."""
        return read_jsonl(ClientRecord, self.run / "clients.jsonl")

    def rounds(self) -> list[RoundRecord]:
        """Those that are over."""
        return read_jsonl(RoundRecord, self.run / "rounds.jsonl")

    def left(self) -> list[int]:
        """Processes of this deployment that run now, those that its processes have started among them."""
        mark, found = f"={self.folder}/tmp".encode() + b"\0", []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (path / "environ").read_bytes() and _state(path) != "Z":
                    found.append(int(path.name))
            except OSError:
                continue  # it has ended meanwhile, or is somebody else's
        return sorted(found)


def command_line(pid: int) -> str:
    """Of a process; empty where it is no more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def memory_of(pid: int, what: str) -> int:
    """A line of /proc/PID/status in bytes, such as VmRSS or VmData."""
    found = re.search(rf"^{what}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None, what
    return int(found[1]) * 1024


def _state(process: Path) -> str:
    return (process / "stat").read_text().rpartition(")")[2].split()[0]
