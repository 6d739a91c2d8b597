"""What a driver must offer: tasks on clients, on a virtual or a real clock."""

from __future__ import annotations

from typing import Protocol

from fedhybrid.records import ClientTask, IntArray, TaskEvent

__all__ = ["Driver"]


class Driver(Protocol):
    """Runs tasks on clients, on a virtual or a real clock.

    Synchronous round: submit k, take events until k are back. Asynchronous: take one event, submit one task.
    """

    def clients(self) -> IntArray:
        """Numbers of the clients that can be given a task now, ascending."""
        ...

    def submit(self, client: int, task: ClientTask) -> int:
        """Sends a task; returns its ticket."""
        ...

    def cancel(self, ticket: int) -> TaskEvent:
        """Gives up a task that has not ended: the event of its failure "late", with what it has cost so far."""
        ...

    def next_event(self, timeout_s: float | None = None) -> TaskEvent | None:
        """The next task to end, in the clock's order (ties by ticket); None when none ends within `timeout_s`."""
        ...

    def now(self) -> float:
        """The clock, in seconds since the run began."""
        ...
