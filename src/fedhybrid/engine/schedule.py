"""When the server waits for whom: what a recipe says about the rounds, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedhybrid.errors import ConfigError

__all__ = ["SCHEDULES", "Evaluation", "Schedule"]

SCHEDULES = ("synchronous", "asynchronous")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Synchronous rounds, or a server that aggregates whenever enough updates have come.

    Attributes:
        kind: "synchronous": choose a cohort, wait, aggregate. "asynchronous": keep `in_flight` clients at work, and
            aggregate whenever `buffer` updates have come.
        in_flight: Clients at work at any time (asynchronous).
        buffer: Updates of one aggregation; 1 is fully asynchronous, more is semi-asynchronous.
        max_staleness: An update that has seen more aggregations than this since its task began is not used.
        over_selection_ratio: So many times as many clients are chosen as are waited for (synchronous): the slowest are
            left behind.
        deadline_s: A round ends at the latest this long after it began (synchronous).
        timeout_s: A task that takes longer is given up, and its client may be asked again.
    """

    kind: str = "synchronous"
    in_flight: int = 10
    buffer: int = 1
    max_staleness: int | None = None
    over_selection_ratio: float = 1.0
    deadline_s: float | None = None
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.kind not in SCHEDULES:
            problems.append(f"schedule.kind must be one of {', '.join(SCHEDULES)}, got {self.kind!r}")
        counts = (("in_flight", self.in_flight), ("buffer", self.buffer))
        problems += [f"schedule.{name} must be at least 1, got {value}" for name, value in counts if value < 1]
        for name, value in (("deadline_s", self.deadline_s), ("timeout_s", self.timeout_s)):
            if value is not None and not (math.isfinite(value) and value > 0):
                problems.append(f"schedule.{name} must be a positive number of seconds, got {value}")
        if not 1 <= self.over_selection_ratio <= 100:
            problems.append(f"schedule.over_selection_ratio must be 1 to 100, got {self.over_selection_ratio}")
        if self.max_staleness is not None and self.max_staleness < 0:
            problems.append(f"schedule.max_staleness must be at least 0, got {self.max_staleness}")
        if self.asynchronous and (self.deadline_s is not None or self.over_selection_ratio != 1):
            problems.append("schedule.deadline_s and schedule.over_selection_ratio are for synchronous rounds")
        if not self.asynchronous and (self.buffer != 1 or self.max_staleness is not None):
            problems.append("schedule.buffer and schedule.max_staleness are for the asynchronous schedule")
        if problems:
            raise ConfigError(problems)

    @property
    def asynchronous(self) -> bool:
        """Whether the server goes on without waiting for a whole cohort."""
        return self.kind == "asynchronous"

    @property
    def title(self) -> str:
        """For reports.

        >>> Schedule(kind="asynchronous", buffer=5).title
        'semi-asynchronous'
        """
        if not self.asynchronous:
            return "synchronous"
        return "semi-asynchronous" if self.buffer > 1 else "asynchronous"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How often the global model is tested.

    Attributes:
        every: Rounds from one test to the next; the last round is always tested.
        clients: So many clients, drawn uniformly, test it on their own data then; each inside its memory budget.
    """

    every: int = 1
    clients: int = 0
