"""Plans: which tensors of a captured step are kept or made again so that its peak stays inside a byte budget."""

from fedhybrid.planner.calls import Update, replay_form, updates_of
from fedhybrid.planner.costs import CallCost, CostTable
from fedhybrid.planner.liveness import eager_timeline
from fedhybrid.planner.plan import Plan, TensorDecision, describe_peak, make_plan, plan_decisions
from fedhybrid.planner.problem import Problem, make_problem
from fedhybrid.planner.profile import profile_step
from fedhybrid.planner.schedule import Decision, Kind, Schedule, Step, build_schedule
from fedhybrid.planner.solvers import SOLVERS, Effort, Solution, solution

__all__ = [
    "SOLVERS",
    "CallCost",
    "CostTable",
    "Decision",
    "Effort",
    "Kind",
    "Plan",
    "Problem",
    "Schedule",
    "Solution",
    "Step",
    "TensorDecision",
    "Update",
    "build_schedule",
    "describe_peak",
    "eager_timeline",
    "make_plan",
    "make_problem",
    "plan_decisions",
    "profile_step",
    "replay_form",
    "solution",
    "updates_of",
]
