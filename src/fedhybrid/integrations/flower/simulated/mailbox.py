"""Questions in the middle of a task where Ray runs the devices: its workers wait, so no message can reach them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from itertools import count
from typing import Any, cast, final

from fedhybrid.engine.parcels import as_bundle, read_bundle_bytes
from fedhybrid.integrations.flower.device.tasks import GivenUpError
from fedhybrid.tree import Tensors

__all__ = ["Mailbox", "ask_by_mailbox", "open_mailbox"]

_numbers = count()
_LOOK_AGAIN_S = 0.05


class _Actor:
    """In a process of its own, known to Ray by name: holds each question until its answer has come."""

    def __init__(self) -> None:
        self._questions: dict[str, bytes] = {}
        self._answers: dict[str, asyncio.Future[bytes | None]] = {}

    async def ask(self, key: str, question: bytes) -> bytes | None:
        """Waits for the answer; None: the task is given up."""
        self._questions[key] = question
        self._answers[key] = asyncio.get_running_loop().create_future()
        return await self._answers[key]

    async def questions(self) -> dict[str, bytes]:
        """Those that have come since the last look."""
        found, self._questions = self._questions, {}
        return found

    async def answer(self, key: str, answer: bytes | None) -> None:
        """Lets the one who asked go on."""
        waiting = self._answers.pop(key, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)


@final
class Mailbox:
    """The server's end of one run's questions.

    Attributes:
        name: By which Ray's workers find the other end.
    """

    def __init__(self, name: str, actor: Any, get: Callable[[Any], Any], kill: Callable[[Any], None]) -> None:
        self.name, self._actor, self._get, self._kill = name, actor, get, kill

    def questions(self) -> dict[str, Tensors]:
        """New questions, by the keys of their tasks."""
        found = self._get(self._actor.questions.remote())
        return {key: read_bundle_bytes(packed)[1]["question"] for key, packed in found.items()}

    def answer(self, key: str, answer: Tensors | None) -> None:
        """Sends an answer; None gives the task up."""
        packed = None if answer is None else as_bundle(({}, {"answer": answer}))
        self._get(self._actor.answer.remote(key, packed))

    def close(self) -> None:
        """Nobody is answered any more, and whoever waits gives up."""
        self._kill(self._actor)


def open_mailbox(wait: Callable[[float], None]) -> Mailbox:
    """Makes a mailbox in the Ray cluster that this process is connected to, or will be soon.

    Args:
        wait: Lets so many seconds pass.
    """
    import ray  # noqa: PLC0415 - there only with the extra

    while not ray.is_initialized():  # Flower starts it beside us; asked for an actor, Ray would start itself
        wait(_LOOK_AGAIN_S)
    name = f"fedhybrid-mailbox-{os.getpid()}-{next(_numbers)}"  # the variants of a recipe run in one Ray job
    actor = ray.remote(_Actor).options(name=name, num_cpus=0, max_concurrency=1_000).remote()
    return Mailbox(name, actor, ray.get, lambda other: ray.kill(other) if ray.is_initialized() else None)


def ask_by_mailbox(name: str, key: str) -> Callable[[Tensors], Tensors]:
    """The way of one task's questions to the mailbox of that name, from one of Ray's workers."""
    import ray  # noqa: PLC0415

    def ask(question: Tensors) -> Tensors:
        try:
            actor: Any = ray.get_actor(name)
            packed: bytes | None = cast(Any, ray.get)(actor.ask.remote(key, as_bundle(({}, {"question": question}))))
        except (ValueError, ray.exceptions.RayActorError) as error:  # the run has ended
            raise GivenUpError from error
        if packed is None:
            raise GivenUpError
        return read_bundle_bytes(packed)[1].get("answer", {})

    return ask
