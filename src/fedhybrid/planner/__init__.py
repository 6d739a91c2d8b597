"""Plans: which tensors of a captured step are kept or made again so that its peak stays inside a byte budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedhybrid.lazy import lazily

if TYPE_CHECKING:
    from fedhybrid.planner.calls import Update, replay_form, updates_of
    from fedhybrid.planner.costs import CallCost, CostTable
    from fedhybrid.planner.ladder import monotone
    from fedhybrid.planner.liveness import eager_timeline
    from fedhybrid.planner.packable import LOSSY, MENU, OFFLOAD, Packable
    from fedhybrid.planner.packs import PackCost, with_packs
    from fedhybrid.planner.plan import Plan, TensorDecision
    from fedhybrid.planner.problem import BRIEF, KEEP, RECOMPUTE, TRANSIENT, Form, Kind, Pack, Problem, make_problem
    from fedhybrid.planner.profile import profile_step
    from fedhybrid.planner.schedule import Schedule, Step, build_schedule
    from fedhybrid.planner.simulator import Simulator
    from fedhybrid.planner.solvers import SOLVERS, Decisions, Effort, Solution
    from fedhybrid.planner.writing import describe_peak, make_plan, plan_decisions
else:
    __getattr__ = lazily(
        __name__,
        {
            "BRIEF": "problem",
            "CallCost": "costs",
            "CostTable": "costs",
            "Decisions": "solvers",
            "Effort": "solvers",
            "Form": "problem",
            "KEEP": "problem",
            "Kind": "problem",
            "LOSSY": "packable",
            "MENU": "packable",
            "OFFLOAD": "packable",
            "Pack": "problem",
            "PackCost": "packs",
            "Packable": "packable",
            "Plan": "plan",
            "Problem": "problem",
            "RECOMPUTE": "problem",
            "SOLVERS": "solvers",
            "Schedule": "schedule",
            "Simulator": "simulator",
            "Solution": "solvers",
            "Step": "schedule",
            "TRANSIENT": "problem",
            "TensorDecision": "plan",
            "Update": "calls",
            "build_schedule": "schedule",
            "describe_peak": "writing",
            "eager_timeline": "liveness",
            "make_plan": "writing",
            "make_problem": "problem",
            "monotone": "ladder",
            "plan_decisions": "writing",
            "profile_step": "profile",
            "replay_form": "calls",
            "updates_of": "calls",
            "with_packs": "packs",
        },
    )

__all__ = [
    "BRIEF",
    "KEEP",
    "LOSSY",
    "MENU",
    "OFFLOAD",
    "RECOMPUTE",
    "SOLVERS",
    "TRANSIENT",
    "CallCost",
    "CostTable",
    "Decisions",
    "Effort",
    "Form",
    "Kind",
    "Pack",
    "PackCost",
    "Packable",
    "Plan",
    "Problem",
    "Schedule",
    "Simulator",
    "Solution",
    "Step",
    "TensorDecision",
    "Update",
    "build_schedule",
    "describe_peak",
    "eager_timeline",
    "make_plan",
    "make_problem",
    "monotone",
    "plan_decisions",
    "profile_step",
    "replay_form",
    "updates_of",
    "with_packs",
]
