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
    problem = prepared.problem_with(options.actions, options.codecs, measured=cap < math.inf)
    lossy = options.solver == "auto" and "encode" in options.actions and cap < math.inf
    exact = _exact(prepared, limit_bytes, options, name) if lossy else None
    for number in range(_ROUNDS + 1):
        try:
            found = _solve(prepared, limit_bytes, options, name, problem)
        except InfeasibleBudgetError:
            if exact is None:
                raise
            found = exact
        if exact is not None and exact.extra_seconds <= found.extra_seconds:
            found = replace(exact, bound_seconds=min(exact.bound_seconds, found.bound_seconds))
        plan = prepared.written(found, limit_bytes, name)
        if plan.bit_identical or not found.gradient_error:
            return plan if cap < math.inf or plan.bit_identical else replace(plan, gradient_error=None)
        if found.gradient_error > cap * (1 + 1e-9):
            raise ConfigError(
                f"the solver {name!r} does not keep to max_gradient_error={cap}: its plan has "
                f"{found.gradient_error:.4f}. Raise the cap, or let solver='auto' choose."
            )
        error = prepared.error_of(found)
        if error <= cap:
            return replace(plan, gradient_error=error)
        ratio = math.inf if number == _ROUNDS - 1 else error / found.gradient_error * _MARGIN_RATIO
        chosen = set(found.decisions.items())
        problem = replace(
            problem,
            packs=[
                replace(pack, error=pack.error * ratio)
                if pack.error and ((pack.storage, pack.option) in chosen or ratio == math.inf)
                else pack
                for pack in problem.packs
            ],
        )
    raise AssertionError("without lossy packs every plan is exact")


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
