"""Several plans of one step, for several budgets, made to agree with each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fedhybrid.planner.plan import Plan

__all__ = ["monotone"]


def monotone(plans: Sequence[Plan]) -> list[Plan]:
    """The plans with the better one wherever another budget's plan is better; same order, same budgets.

    Afterwards a smaller budget never has a larger peak, and a larger budget is never slower. A plan within a budget
    is a plan for every larger one; a lower bound for a budget holds for every smaller one. Of two plans
    that cost the same the smaller is taken.

    Args:
        plans: Of one step and one set of options, each with its budget.
    """
    found = []
    for own in plans:
        assert own.budget_bytes is not None
        fitting = [plan for plan in plans if plan.peak_bytes <= own.budget_bytes]
        best = min(fitting, key=lambda plan: (plan.extra_time_s, plan.peak_bytes))
        bounds = [p.bound_extra_time_s for p in plans if (p.budget_bytes or 0) >= own.budget_bytes]
        bound = min(max(bounds), best.extra_time_s)
        found.append(dataclasses.replace(best, budget_bytes=own.budget_bytes, bound_extra_time_s=bound))
    return found
