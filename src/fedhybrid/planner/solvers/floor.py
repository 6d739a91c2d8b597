"""The smallest peak that a solver reaches: budgets a little below the best so far, until it fails."""

from __future__ import annotations

from collections.abc import Callable

from fedhybrid.planner.problem import Problem
from fedhybrid.planner.solvers.base import Effort, Solution, Solver

__all__ = ["smallest_of"]

_STEP_RATIO = 0.94  # of each budget to the best peak so far
_ROUNDS = 12


def smallest_of(problem: Problem, solver: Solver, effort: Callable[[], Effort]) -> Solution:
    """The solution of the smallest peak.

    A solver that is asked for the impossible drops everything at once; asked for a little less than it has, it finds
    more.

    Args:
        problem: What to decide about.
        solver: Asked again and again.
        effort: Makes the effort of each round.
    """
    best = solver(problem, 0, effort())
    for _ in range(_ROUNDS):
        limit = int(best.peak_bytes * _STEP_RATIO)
        found = solver(problem, limit, effort())
        if found.peak_bytes < best.peak_bytes:
            best = found
        if found.peak_bytes > limit:
            break
    return best
