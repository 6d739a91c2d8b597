"""A device's program in a deployment: one slim process that stays, joins the server's recipe and does its tasks."""

from __future__ import annotations

import ctypes
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, final

from flwr.app import Message, RecordDict

from fedhybrid.devices import DEVICES, load_profile, profile_table
from fedhybrid.engine.footprint import give_back_memory, process_memory
from fedhybrid.errors import ConfigError
from fedhybrid.integrations.flower.device.flags import flag_problems
from fedhybrid.integrations.flower.device.free_memory import MeasuredBudget
from fedhybrid.integrations.flower.device.kept import KeptOnDisk
from fedhybrid.integrations.flower.device.node import DeployedNode, NodeFacts
from fedhybrid.integrations.flower.device.slim import SlimDevice, open_device
from fedhybrid.integrations.flower.link.connection import FleetConnection
from fedhybrid.integrations.flower.link.endpoint import Endpoint
from fedhybrid.integrations.flower.messages import Letter, letter_of, record_of
from fedhybrid.integrations.flower.version import require_flower
from fedhybrid.units import parse_budget

__all__ = ["MARGIN_BYTES", "join"]

_WHY_AT_MOST = 300  # characters that are shown of what a server says
MARGIN_BYTES = 32 * 2**20  # above base and budget under a hard limit: what libraries take when they are first used
_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES = -3, 65536  # as glibc's malloc.h calls it; from here on a block is a mapping


def join(
    endpoint: Endpoint,
    *,
    home: Path,
    name: str,
    key_file: Path | None = None,
    budget: str | int | None = None,
    device: str | None = None,
    client: int | None = None,
    data_root: Path | None = None,
    own_data: bool = False,
    allow: Collection[str] = (),
    hard_limit: bool = False,
    patience_s: float | None = None,
    on_news: Callable[[str], None] = print,
) -> None:
    """Serves until the connection is broken for good or the process is told to end.

    Args:
        endpoint: Of the server.
        home: A folder of this device alone, for programs, its measured profile and what its client keeps.
        name: Unique among the nodes of the server.
        key_file: This node's private key.
        budget: What a training step may hold here; without it, what the system leaves free is measured and predicted.
        device: A row of `DEVICES` or a profile (TOML); without it this machine is measured once.
        client: Whose share of the recipe's partition it holds; without it the server gives it a number.
        data_root: The folder of a data set that is not embedded.
        own_data: All training samples of the data set here are this device's own; nothing is dealt out.
        allow: Code and data sets from outside that are trusted (`slim.open_device`).
        hard_limit: The system refuses what goes above base + budget + `MARGIN_BYTES` (RLIMIT_DATA); needs a budget.
            Freed memory goes back at once then, which makes steps slower. What makes programs of plans is another
            process and not under it.
        patience_s: How long to try to reach the server; None is for ever.
        on_news: Hears what happens, a line each.

    Raises:
        ConfigError: Flags that make no sense, no connection, a wrong certificate, a key that is not registered.
    """
    require_flower()
    problems = flag_problems(
        name=name,
        home=home,
        ca_file=endpoint.ca_file,
        key_file=key_file,
        budget=budget,
        device=device,
        client=client,
        data_root=data_root,
        hard_limit=hard_limit,
        patience_s=patience_s,
    )
    if problems:
        raise ConfigError(problems)
    limit = None if budget is None else parse_budget(budget)
    home.mkdir(parents=True, exist_ok=True)
    profile = load_profile(device) if device is not None else load_profile(_measured_profile(home, on_news))
    measured = MeasuredBudget() if limit is None else None

    def opened(brief: Mapping[str, Any], number: int) -> SlimDevice:
        on_news(f"joining as client {number}: loading data, capturing the training step")
        made = open_device(brief, None if own_data else number, home, allow=allow, data_root=data_root)
        if hard_limit and limit is not None:
            give_back_memory(collect=True)
            bytes_ = limit.resolve_bytes(resident_bytes=made.resident_bytes, eager_peak_bytes=made.eager_peak_bytes)
            _limit_data(bytes_ + MARGIN_BYTES, on_news)
        on_news(f"ready: {made.num_samples} samples, {process_memory()['rss_bytes'] / 2**20:.0f} MiB resident")
        return made

    node = DeployedNode(
        training=nullcontext if measured is None else measured.training,
        facts=NodeFacts(
            name=name,
            budget=measured if measured is not None else (lambda: str(budget)),
            device=profile_table(profile),
            runtime_bytes=lambda: process_memory()["rss_bytes"],
            client=client,
        ),
        open_device=opened,
        kept=KeptOnDisk(home / "kept"),
    )
    with ExitStack() as stack:
        if measured is not None:
            stack.enter_context(measured.watching())
        connection = stack.enter_context(
            FleetConnection(endpoint, key_file=key_file, patience_s=patience_s, said=on_news)
        )
        answering = _Answering(node, on_news)
        while True:
            message = connection.receive()
            if message is None:
                return
            reply = answering.to(message)
            connection.send(Message(record_of(reply), reply_to=message))
            del message, reply  # tensors of a whole model each
            give_back_memory()


@final
class _Answering:
    """What is answered to a message, whatever happens: a device must go on after a task that failed."""

    def __init__(self, node: DeployedNode, on_news: Callable[[str], None]) -> None:
        self._node, self._on_news = node, on_news
        self._heard: set[str] = set()  # why the server did not take this node

    def to(self, message: Message) -> Letter:
        """The reply."""
        try:
            received_s = time.perf_counter()
            letter = letter_of(message.content)
            # The bytes of a whole model, and what receiving them took, would lie beside the training step.
            message.content = RecordDict()
            give_back_memory()
            if letter.kind == "refused":
                self._tell(str(letter.header.get("why", "")))
            reply = self._node.handle(letter, received_s=received_s)
        except Exception as error:  # a fault of this program or of somebody's method: the server must hear of it
            reply = Letter(kind="refused", header={"why": f"{type(error).__name__}: {error}"})
        if reply.kind == "refused":
            self._on_news(f"refused: {reply.header.get('why')}")
        elif reply.kind == "delivery":
            steps, seconds = reply.metrics["steps"], float(reply.header["seconds"])
            peak = int(reply.metrics["measured-peak-bytes"]) / 2**20
            first_s = reply.header.get("to_first_step_s")
            first = "" if first_s is None else f", the first after {first_s * 1000:.0f} ms"
            self._on_news(f"did a task: {steps} steps in {seconds:.2f} s{first}, peak {peak:.1f} MiB")
        return reply

    def _tell(self, why: str) -> None:
        """What the server says, once; on a terminal its text must not do more than be read."""
        plain = " ".join("".join(c if c.isprintable() else " " for c in why[:_WHY_AT_MOST]).split())
        if plain not in self._heard:
            self._heard.add(plain)
            self._on_news(f"the server refused this node: {plain}")


def _measured_profile(home: Path, on_news: Callable[[str], None]) -> Path:
    """This machine's profile, measured once by a process of its own."""
    path = home / "device.toml"
    if not path.is_file():
        known = ", ".join(sorted(DEVICES))
        on_news(f"measuring this machine once, into {path} (--device NAME does without; known: {known})")
        done = subprocess.run(
            [sys.executable, "-m", "fedhybrid", "doctor", "--profile", str(path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not path.is_file():
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise ConfigError(f"this machine could not be measured ({last}); give --device")
    return path


def _limit_data(allowance_bytes: int, on_news: Callable[[str], None]) -> None:
    """Lets the system refuse what goes above the present size by more than the allowance."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError as error:
        raise ConfigError("--hard-limit needs Linux, whose /proc says what a process holds") from error
    found = re.search(r"^VmData:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    base_bytes = int(found[1]) * 1024
    # Freed blocks must go back at once: glibc keeps those of up to 32 MiB in a heap, which then is full of holes.
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (base_bytes + allowance_bytes, hard))
    on_news(f"hard limit: {base_bytes / 2**20:.0f} MiB base + {allowance_bytes / 2**20:.1f} MiB")
