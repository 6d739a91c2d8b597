"""Plans: which tensors of a captured step are kept or made again so that its peak stays inside a byte budget."""

from fedhybrid.planner.calls import Update, replay_form, updates_of
from fedhybrid.planner.costs import CallCost, CostTable
from fedhybrid.planner.ladder import monotone
from fedhybrid.planner.liveness import eager_timeline
from fedhybrid.planner.packable import LOSSY, MENU, OFFLOAD, Packable
from fedhybrid.planner.packs import PackCost, with_packs
from fedhybrid.planner.plan import Plan, TensorDecision, describe_peak, make_plan, plan_decisions
from fedhybrid.planner.problem import BRIEF, KEEP, RECOMPUTE, TRANSIENT, Form, Kind, Pack, Problem, make_problem
from fedhybrid.planner.profile import profile_step
from fedhybrid.planner.schedule import Schedule, Step, build_schedule
from fedhybrid.planner.simulator import Simulator
from fedhybrid.planner.solvers import SOLVERS, Decisions, Effort, Solution

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
