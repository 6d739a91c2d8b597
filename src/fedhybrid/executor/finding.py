"""Finding the plan for a budget: solve, and where something lossy was chosen, see what it does and solve again.

The errors that solvers add up were measured a few tensors at a time, and add up only while they are small; so the
gradient of the plan itself is computed once on the example batch, the errors of what it packs are corrected by what is
found, and the search goes on until the cap really holds there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fedhybrid.errors import ConfigError, InfeasibleBudgetError
from fedhybrid.executor.options import PlanOptions
from fedhybrid.executor.sketch import GradientSketch
from fedhybrid.planner import SOLVERS, Effort, Plan, Problem, Solution, describe_peak

if TYPE_CHECKING:
    from fedhybrid.executor.prepared import PreparedStep

__all__ = ["AUTO", "effort_for", "find_plan"]

AUTO = "milp"
_ROUNDS = 5
_MARGIN_RATIO = 1.1  # so that a corrected error does not fail by a hair again


def effort_for(actions: Sequence[str], *, max_error: float = 0.0, time_limit_s: float | None = None) -> Effort:
    """What a solver may do with these actions."""
    return Effort(
        time_limit_s=time_limit_s,
        recompute="recompute" in actions,
        split="split" in actions,
        max_error=max_error,
    )


def find_plan(prepared: PreparedStep, limit_bytes: int, options: PlanOptions) -> Plan:
    """The cheapest plan found within a limit, resident bytes included. Errors as of `PreparedStep.plan`."""
    cap = options.max_gradient_error
    name = "keep-all" if not options.actions else AUTO if options.solver == "auto" else options.solver
    if "encode" not in options.actions or cap == math.inf:
        problem = prepared.problem_with(options.actions, options.codecs, measured=False)
        plan = prepared.written(_solve(prepared, limit_bytes, options, name, problem), limit_bytes, name)
        return plan if not plan.lossy else replace(plan, gradient_error=None)
    found, error = _within_cap(prepared, limit_bytes, options, name)
    return replace(prepared.written(found, limit_bytes, name), gradient_error=error)


def _within_cap(prepared: PreparedStep, limit_bytes: int, options: PlanOptions, name: str) -> tuple[Solution, float]:
    """The cheapest solution whose gradient is really within the cap on the example batch, and its error."""
    cap, auto = options.max_gradient_error, options.solver == "auto"
    problem = prepared.problem_with(options.actions, options.codecs)
    best = _exact(prepared, limit_bytes, options, name) if auto else None
    error, best_error, bound_seconds = math.inf, 0.0, math.inf
    exact: GradientSketch | None = None
    infeasible: InfeasibleBudgetError | None = None
    for _ in range(_ROUNDS):
        try:
            found = _solve(prepared, limit_bytes, options, name, problem)
        except InfeasibleBudgetError as failed:
            infeasible = infeasible or failed
            break
        bound_seconds = min(bound_seconds, found.bound_seconds)  # of rounds with other errors, the smallest holds
        error = 0.0
        if found.gradient_error:
            exact = exact or prepared.exact_sketch()
            error = prepared.error_of(found, exact)
        if error <= cap and (best is None or found.extra_seconds < best.extra_seconds):
            best, best_error = found, error
        if error <= cap or not auto:
            break
        problem = _with_errors(problem, error / found.gradient_error * _MARGIN_RATIO)
    if best is None and infeasible is not None:
        raise infeasible
    if best is None:
        raise ConfigError(
            f"the solver {name!r} does not keep to max_gradient_error={cap}: the gradient of its plan is off by "
            f"{error:.4f}. Raise the cap, or the budget, or let solver='auto' choose."
        )
    return replace(best, bound_seconds=min(best.bound_seconds, bound_seconds, best.extra_seconds)), best_error


def _with_errors(problem: Problem, ratio: float) -> Problem:
    """The problem with all errors so many times as large."""
    return replace(problem, packs=[replace(pack, error=pack.error * ratio) for pack in problem.packs])


def _exact(prepared: PreparedStep, limit_bytes: int, options: PlanOptions, name: str) -> Solution | None:
    """What is found without loss: the search among more choices is not always the better one."""
    loss_free = replace(options, actions=[a for a in options.actions if a != "encode"], max_gradient_error=0.0)
    try:
        return _solve(prepared, limit_bytes, loss_free, name, prepared.problem_with(loss_free.actions))
    except InfeasibleBudgetError:
        return None


def _solve(prepared: PreparedStep, limit_bytes: int, options: PlanOptions, name: str, problem: Problem) -> Solution:
    room, cap = limit_bytes - prepared.resident_bytes, options.max_gradient_error
    effort = effort_for(options.actions, max_error=cap, time_limit_s=options.time_limit_s)
    found, closing = SOLVERS[name](problem, room, effort), prepared.closing
    if max(found.peak_bytes, closing.peak_bytes) <= room:
        return found
    smallest = found
    if options.solver == "auto" and options.actions:
        # Near the floor the search needs more work than it is given for an ordinary budget.
        floor = prepared.floor_of(problem, tuple(options.actions), cap)
        smallest = min(found, floor, key=lambda solution: solution.peak_bytes)
        # What was proven for the floor's own budget does not hold for a larger one.
        found = replace(smallest, bound_seconds=min(found.bound_seconds, smallest.extra_seconds))
    peak_bytes = max(smallest.peak_bytes, closing.peak_bytes)
    if peak_bytes > room:
        closes = closing.peak_bytes >= smallest.peak_bytes
        raise InfeasibleBudgetError(
            needed_bytes=prepared.resident_bytes + peak_bytes,
            budget_bytes=limit_bytes,
            blocker=closing.peak_op if closes else describe_peak(problem, smallest),
        )
    return found
