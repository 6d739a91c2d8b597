"""What every solver takes and gives."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fedhybrid.planner.problem import Problem
from fedhybrid.planner.schedule import Decision, Schedule, build_schedule

__all__ = ["Decisions", "Effort", "Solution", "Solver", "solution"]

Decisions = dict[int, Decision]


@dataclass(frozen=True)
class Solution:
    """Decisions and the schedule that they give. Storages without a decision are kept."""

    decisions: Decisions
    schedule: Schedule

    @property
    def peak_bytes(self) -> int:
        """Above the resident bytes."""
        return self.schedule.peak_bytes

    @property
    def extra_seconds(self) -> float:
        """What the replays cost."""
        return self.schedule.extra_seconds


@dataclass
class Effort:
    """How long a solver may try.

    Evaluations are the same on every machine, so runs that must be reproducible bound them alone; the wall-clock limit
    is for people who wait.
    """

    max_evaluations: int = 4000
    time_limit_s: float | None = None
    evaluations: int = 0
    started_s: float = field(default_factory=time.perf_counter)

    def evaluate(self, problem: Problem, decisions: Mapping[int, Decision]) -> Solution:
        """Builds the schedule and counts."""
        self.evaluations += 1
        return solution(problem, decisions)

    @property
    def spent(self) -> bool:
        """Whether to stop improving."""
        late = self.time_limit_s is not None and time.perf_counter() - self.started_s > self.time_limit_s
        return late or self.evaluations >= self.max_evaluations


class Solver(Protocol):
    """Finds decisions under a limit."""

    def __call__(self, problem: Problem, limit_bytes: int, effort: Effort) -> Solution:
        """The cheapest solution found within `limit_bytes` above the resident bytes, else that of the smallest peak."""
        ...


def solution(problem: Problem, decisions: Mapping[int, Decision]) -> Solution:
    """The decisions with their schedule; keeps what is kept out of the mapping."""
    dropped: Decisions = {s: d for s, d in sorted(decisions.items()) if d is not Decision.KEEP}
    return Solution(dropped, build_schedule(problem, dropped))
