"""What every solver takes and gives."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from fedhybrid.planner.problem import Problem
from fedhybrid.planner.schedule import Schedule, build_schedule

__all__ = [
    "Decisions",
    "Effort",
    "Solution",
    "Solver",
    "error_squared",
    "least_seconds",
    "reorders_sums",
]

Decisions = dict[int, int]


@dataclass(frozen=True)
class Solution:
    """Decisions (subject -> option, see `planner.problem`) and what they give.

    Attributes:
        problem: What was decided about.
        decisions: What is not mentioned is kept and runs whole.
        peak_bytes: Above the resident bytes.
        extra_seconds: What the decisions cost.
        bound_seconds: Proven: no decisions of the same kind (with or without splits that change the order of sums)
            within the limit cost less. Where a solver proves nothing it is `least_seconds`.
    """

    problem: Problem
    decisions: Decisions
    peak_bytes: int
    extra_seconds: float
    bound_seconds: float

    @property
    def gradient_error(self) -> float:
        """Predicted relative L2 error of the whole gradient; errors of single packs add up in squares."""
        return math.sqrt(error_squared(self.problem, self.decisions))

    @cached_property
    def schedule(self) -> Schedule:
        """The calls in order."""
        return build_schedule(self.problem, self.decisions)

    @classmethod
    def of(cls, problem: Problem, decisions: Mapping[int, int], *, split: bool = True) -> Solution:
        """The solution that consists of these decisions, with the bound that needs no search.

        Args:
            problem: What was decided about.
            decisions: Options by subject.
            split: Calls may run in chunks at all; if not, nothing is faster than the step as it is.
        """
        chosen = {subject: option for subject, option in sorted(decisions.items()) if option}
        schedule = build_schedule(problem, chosen)
        least = least_seconds(problem, split=split, inexact=reorders_sums(problem, chosen))
        extra = schedule.extra_seconds
        found = cls(problem, chosen, schedule.peak_bytes, extra, min(least, extra))
        found.__dict__["schedule"] = schedule
        return found


def error_squared(problem: Problem, decisions: Mapping[int, int]) -> float:
    """Sum of the squared gradient errors of the packs among some decisions."""
    packs = problem.pack_by_option
    return sum(packs[key].error ** 2 for key in decisions.items() if key in packs)


def least_seconds(problem: Problem, *, split: bool, inexact: bool) -> float:
    """Extra seconds below which no decisions can be: every call in its fastest form and nothing done twice; at most 0.

    Args:
        problem: What is decided about.
        split: Calls may run in chunks.
        inexact: Also in chunks that change the order of sums.
    """
    extra = 0.0
    for op in problem.ops if split else ():
        fastest = min(form.seconds for i, form in enumerate(op.forms) if not i or form.exact or inexact)
        extra += fastest - op.forms[0].seconds
    return extra


def reorders_sums(problem: Problem, decisions: Mapping[int, int]) -> bool:
    """Whether some decisions split calls so that sums are taken in another order."""
    first_call = len(problem.nbytes)
    return any(not problem.calls[s - first_call].forms[o].exact for s, o in decisions.items() if s >= first_call)


@dataclass
class Effort:
    """How long a solver may try, and what it may do.

    Work is counted in calls that the simulator looks at, which are the same on every machine: runs that must be
    reproducible bound them alone; the wall-clock limit is for people who wait. A core does some 150,000 a second.

    Attributes:
        max_work: Calls that may be looked at.
        time_limit_s: Seconds from now on.
        recompute, split: The actions that are allowed. `inexact`: splits that change the order of sums, too.
        max_error: Cap on the relative error of the gradient that lossy packs add up to (their squares do).
    """

    max_work: int = 120_000
    time_limit_s: float | None = None
    recompute: bool = True
    split: bool = False
    inexact: bool = True
    max_error: float = 0.0
    work: int = 0
    started_s: float = field(default_factory=time.perf_counter)

    @property
    def spent(self) -> bool:
        """Whether to stop improving."""
        late = self.time_limit_s is not None and time.perf_counter() - self.started_s > self.time_limit_s
        return late or self.work >= self.max_work


class Solver(Protocol):
    """Finds decisions under a limit."""

    def __call__(self, problem: Problem, limit_bytes: int, effort: Effort) -> Solution:
        """The cheapest solution found within `limit_bytes` above the resident bytes, else that of the smallest peak."""
        ...
