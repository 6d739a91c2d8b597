"""A device's side of the talk: jobs in, deliveries out, and tasks that wait for the server's answers in between.

A task that asks the server something waits in a thread of its own while its question travels as the reply to the job's
message; the answer comes as the next message. So a device needs no connection but Flower's messages.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any, Protocol, final

import torch

from fedhybrid.engine.labour import Job
from fedhybrid.engine.parcels import delivery_parts, job_from
from fedhybrid.engine.runtime import Ask
from fedhybrid.engine.traffic import Delivery
from fedhybrid.errors import ConfigError, FedHybridError, InfeasibleBudgetError
from fedhybrid.integrations.flower.messages import Letter
from fedhybrid.tree import Tensors

__all__ = ["Device", "GivenUpError", "Tasks", "delivered"]


class Device(Protocol):
    """Whatever does jobs."""

    def do(self, job: Job, plans: Mapping[str, str], ask: Ask | None) -> Delivery:
        """What comes of a job, whose plans came with it as JSON; `ask` takes questions to the server."""
        ...


class GivenUpError(Exception):
    """Nobody waits for this task any longer."""


@final
class _Waiting:
    """A task in its own thread; `go_on` runs it up to its next question or its end."""

    def __init__(self, do: Callable[[Ask], Delivery]) -> None:
        self._to_task: SimpleQueue[Tensors | None] = SimpleQueue()
        self._from_task: SimpleQueue[Tensors | Delivery | BaseException] = SimpleQueue()
        self._given_up = False
        self._thread = threading.Thread(target=self._run, args=(do,), daemon=True)
        self._thread.start()

    def give_up(self) -> None:
        """Ends it; whatever it says to that, nobody wants to hear."""
        self._given_up = True
        self._to_task.put(None)
        self._from_task.get()
        self._thread.join()

    def go_on(self, answer: Tensors | None = None) -> Tensors | Delivery:
        """A question, or the end, when the thread has ended too; the task begins without an answer."""
        self._to_task.put(answer)
        said = self._from_task.get()
        if isinstance(said, Delivery | BaseException):
            self._thread.join()
        if isinstance(said, BaseException):
            raise said
        return said

    def _run(self, do: Callable[[Ask], Delivery]) -> None:
        torch.set_num_threads(1)  # a thread has a number of its own
        self._to_task.get()
        try:
            self._from_task.put(do(self._ask))
        except BaseException as error:  # it belongs to whoever waits
            self._from_task.put(error)

    def _ask(self, question: Tensors) -> Tensors:
        if self._given_up:
            raise GivenUpError
        # Other tasks of this process draw from the same generator while this one waits.
        drawn = torch.get_rng_state()
        self._from_task.put(question)
        answer = self._to_task.get()
        torch.set_rng_state(drawn)
        if answer is None:
            raise GivenUpError
        return answer


@final
class Tasks:
    """The tasks of one process, by their tickets."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}

    @property
    def wait(self) -> bool:
        """Whether a task waits for an answer."""
        return bool(self._waiting)

    def give_up(self) -> None:
        """Ends all tasks that wait for an answer."""
        while self._waiting:
            self._waiting.popitem()[1].give_up()

    def handle(self, letter: Letter, device: Device, ask: Ask | None = None) -> Letter:
        """The reply to a letter of the kind "job", "answer" or "given-up"; what is wrong is a reply "refused".

        Args:
            letter: From the server.
            device: Does the job.
            ask: Another way to the server; without it questions are replies.
        """
        key = str(letter.header.get("key", ""))
        try:
            if letter.kind == "job":
                return self._began(key, letter, device, ask)
            if letter.kind in ("answer", "given-up"):
                return self._went_on(key, letter)
            raise ConfigError(f"a letter of the kind {letter.kind!r} is none that a device answers")
        except FedHybridError as error:
            outcome = "out_of_memory" if isinstance(error, InfeasibleBudgetError) else "crash"
            return Letter(kind="refused", header={"why": f"{type(error).__name__}: {error}", "outcome": outcome})

    def _began(self, key: str, letter: Letter, device: Device, ask: Ask | None) -> Letter:
        job = job_from(letter.header, letter.groups)
        if ask is not None or not letter.header.get("asks"):
            return delivered(device.do(job, letter.plans, ask))
        task = _Waiting(lambda ours: device.do(job, letter.plans, ours))
        return self._said(key, task, task.go_on())

    def _went_on(self, key: str, letter: Letter) -> Letter:
        task = self._waiting.pop(key, None)
        if task is None:
            raise ConfigError(f"no task {key} waits for an answer here; was this device's program started again?")
        if letter.kind == "given-up":
            task.give_up()
            return Letter(kind="given-up")
        return self._said(key, task, task.go_on(letter.groups.get("answer", {})))

    def _said(self, key: str, task: _Waiting, said: Tensors | Delivery) -> Letter:
        if isinstance(said, Delivery):
            return delivered(said)
        self._waiting[key] = task
        return Letter(kind="question", groups={"question": said})


def delivered(delivery: Delivery, **more: Any) -> Letter:
    """A delivery as a letter; `more` joins its header."""
    header, groups = delivery_parts(delivery)
    update = delivery.update
    metrics = {
        "measured-peak-bytes": update.measured_peak_bytes,
        "num-examples": update.num_samples,
        "steps": update.steps,
    }
    return Letter(kind="delivery", header=header | more, groups=groups, metrics=metrics)
