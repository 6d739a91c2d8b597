"""A node's side of a deployment: who it is, what it promises, the recipe that it has joined, the tasks that it does."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, final

from fedhybrid.engine.labour import Job
from fedhybrid.engine.runtime import Ask
from fedhybrid.engine.traffic import Delivery
from fedhybrid.errors import ConfigError, FedHybridError
from fedhybrid.integrations.flower.device.kept import KeptInMemory
from fedhybrid.integrations.flower.device.tasks import Device, Tasks
from fedhybrid.integrations.flower.messages import Letter
from fedhybrid.integrations.flower.versions import library_versions
from fedhybrid.tree import Tensors

__all__ = ["DeployedNode", "Joined", "Kept", "NodeFacts"]

_KEY = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")  # of a task; it comes from the server and becomes a file's name


class Joined(Protocol):
    """A device that has its data and its program; a `tasks.Device` besides."""

    @property
    def num_samples(self) -> int:
        """That it trains on."""
        ...

    @property
    def first_step_at_s(self) -> float | None:
        """When the last task's first step began, by `time.perf_counter`; None where there was none or nobody looked."""
        ...

    def do(self, job: Job, plans: Mapping[str, str], ask: Ask | None) -> Delivery:
        """What comes of a job."""
        ...


class Kept(Protocol):
    """What a client keeps between tasks, where it keeps it, by the keys of those tasks."""

    def begin(self, accepted: str, stored: str) -> Tensors | None:
        """What the client goes on from; what can count no more is thrown away.

        Args:
            accepted: The last task that counted; "" where none has.
            stored: The same at the server's last checkpoint, to which it goes back when it is killed.

        Returns:
            None where it is lost: a new device, a damaged disk.
        """
        ...

    def keep(self, key: str, state: Tensors) -> None:
        """What the task with that key leaves; it counts when a later task says so."""
        ...


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What a node says of itself.

    Attributes:
        name: Unique among the nodes of a server.
        budget: What it promises now, as a recipe writes budgets.
        device: Its profile as a table (`devices.profile_table`).
        runtime_bytes: Memory of its program beside any training, now.
        client: The number that it wants to be, or None.
    """

    name: str
    budget: Callable[[], str | int]
    device: Mapping[str, Any]
    runtime_bytes: Callable[[], int]
    client: int | None = None


@final
@dataclass(kw_only=True)
class DeployedNode:
    """Answers the server's letters one after the other.

    Attributes:
        facts: Who it is.
        open_device: Joins a recipe as a client: loads data, captures the step.
        kept: What the client keeps.
        training: Is entered from a task's beginning to its end, also while it waits for the server's answers.
    """

    facts: NodeFacts
    open_device: Callable[[Mapping[str, Any], int], Joined]
    kept: Kept = field(default_factory=KeptInMemory)
    training: Callable[[], AbstractContextManager[None]] = nullcontext
    _tasks: Tasks = field(default_factory=Tasks)
    _during: ExitStack = field(default_factory=ExitStack)
    _state_lost: bool = False
    _brief: str = ""
    _client: int = -1
    _device: Joined | None = None

    def handle(self, letter: Letter, *, received_s: float | None = None) -> Letter:
        """The reply to a letter; what is wrong is a reply "refused".

        Args:
            letter: From the server.
            received_s: When its message was there, by `time.perf_counter`; None is now.
        """
        received_s = time.perf_counter() if received_s is None else received_s
        try:
            if letter.kind == "hello":
                return self._here()
            if letter.kind == "join":
                return self._join(str(letter.header.get("brief", "")), letter.header.get("client"))
            if letter.kind == "refused":
                return Letter(kind="heard")
            return self._task(letter, received_s)
        except FedHybridError as error:
            return Letter(kind="refused", header={"why": str(error)})

    def _here(self) -> Letter:
        facts = self.facts
        return Letter(
            kind="here",
            header={
                "name": facts.name,
                "client": facts.client,
                "budget": facts.budget(),
                "device": dict(facts.device),
                "runtime_bytes": facts.runtime_bytes(),
                "versions": library_versions(),
            },
        )

    def _join(self, brief: str, client: Any) -> Letter:
        if not isinstance(client, int) or isinstance(client, bool) or client < 0:
            raise ConfigError(f"the server must say which client this node is, got {client!r:.80}")
        self._give_up()
        if self._device is None or (brief, client) != (self._brief, self._client):
            try:
                read = json.loads(brief)
            except ValueError as error:
                raise ConfigError(f"the recipe that the server sent is no JSON: {error}") from error
            if not isinstance(read, dict):
                raise ConfigError("the recipe that the server sent is no table")
            self._device, self._brief = None, ""  # two models and two data sets at once could be too much
            self._device = self.open_device(read, client)
            self._brief, self._client = brief, client
        return Letter(kind="joined", header={"num_samples": self._device.num_samples})

    def _task(self, letter: Letter, received_s: float) -> Letter:
        if self._device is None or letter.header.get("brief") != self._brief:
            why = "this device has not joined that recipe; was its program started anew?"
            return Letter(kind="refused", header={"why": why, "outcome": "not_joined"})
        began_s = time.perf_counter()
        try:
            reply = self._tasks.handle(letter, self._prepared(letter, self._device))
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
                raise
            return Letter(kind="refused", header={"why": f"out of memory: {error}", "outcome": "out_of_memory"})
        finally:
            if not self._tasks.wait:
                self._during.close()
        seconds, runtime_bytes = time.perf_counter() - began_s, self.facts.runtime_bytes()
        more: dict[str, Any] = {"seconds": seconds, "budget": self.facts.budget(), "runtime_bytes": runtime_bytes}
        metrics = {"seconds": seconds, "runtime-bytes": runtime_bytes}
        if reply.kind == "delivery" and self._state_lost:
            more["state_lost"] = True
        first_s = self._device.first_step_at_s
        if reply.kind == "delivery" and first_s is not None and first_s >= received_s:
            more["to_first_step_s"] = metrics["to-first-step-seconds"] = first_s - received_s
        return replace(reply, header={**reply.header, **more}, metrics={**reply.metrics, **metrics})

    def _prepared(self, letter: Letter, device: Joined) -> Device:
        """Who does what a letter says; a new job has the device to itself."""
        if letter.kind != "job":
            return device  # its task knows already who does it
        self._give_up()
        key, accepted, stored = (_key_of(letter.header, name) for name in ("key", "accepted", "stored"))
        if not key:
            raise ConfigError("the server must give each task a key")
        self._during.enter_context(self.training())
        state = self.kept.begin(accepted, stored)
        self._state_lost = state is None
        return _Keeping(device, self.kept, key, state or {})

    def _give_up(self) -> None:
        """The server that asks for something new answers no question of before: it is another, or wants it no more."""
        self._tasks.give_up()
        self._during.close()


def _key_of(header: Mapping[str, Any], name: str) -> str:
    key = header.get(name, "")
    if key != "" and not (isinstance(key, str) and _KEY.fullmatch(key)):
        raise ConfigError(f"{name} must be the key of a task, two numbers with '-' between them, got {key!r:.80}")
    return str(key)


@final
class _Keeping:
    """A device whose client's state stays on it."""

    def __init__(self, device: Joined, kept: Kept, key: str, state: Tensors) -> None:
        self._device, self._kept, self._key, self._state = device, kept, key, state

    def do(self, job: Job, plans: Mapping[str, str], ask: Ask | None) -> Delivery:
        """The job, from what the client kept to what it keeps."""
        if job.task.kind == "evaluate" and not self._device.num_samples:
            raise ConfigError("this device holds no samples to test the model on")
        delivery = self._device.do(replace(job, state=self._state), plans, ask)
        after = self._state if delivery.update.state is None else delivery.update.state
        self._kept.keep(self._key, after)
        return replace(delivery, update=replace(delivery.update, state=None))
