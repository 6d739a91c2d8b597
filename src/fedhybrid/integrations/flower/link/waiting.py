"""Waiting in real time: the one place of this folder that reads a clock, and a thread that beats like a heart.

A deployment runs in real time: certificates expire, servers take seconds to start, devices wait for messages.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable
from typing import final

__all__ = ["Deadline", "Heart", "utc_now"]


def utc_now() -> datetime.datetime:
    """This machine's date and time, with time zone UTC."""
    return datetime.datetime.now(datetime.UTC)


@final
class Deadline:
    """A moment `limit_s` seconds from now; None is never.

    >>> Deadline(None).passed, Deadline(0.0).passed
    (False, True)
    """

    def __init__(self, limit_s: float | None) -> None:
        self._at_s = None if limit_s is None else time.monotonic() + limit_s

    @property
    def passed(self) -> bool:
        """Whether that moment is over."""
        return self._at_s is not None and time.monotonic() >= self._at_s

    def within_s(self, wait_s: float) -> float:
        """How long a wait of `wait_s` seconds may last: not beyond the deadline, never below zero."""
        return wait_s if self._at_s is None else max(0.0, min(wait_s, self._at_s - time.monotonic()))


@final
class Heart:
    """Calls `beat()` every `every_s` seconds in a thread of its own, until `stop()`.

    What `beat` raises would end the thread unseen: `beat` handles its own errors.
    """

    def __init__(self, beat: Callable[[], None], *, every_s: float, name: str) -> None:
        self._beat, self._every_s = beat, every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; waits for a beat that is on its way."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            self._beat()
