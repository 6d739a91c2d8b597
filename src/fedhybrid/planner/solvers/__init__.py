"""Solvers: budget -> decisions. Each is a function `(problem, limit_bytes, effort) -> Solution`."""

from fedhybrid.planner.solvers.base import Decisions, Effort, Solution, Solver
from fedhybrid.planner.solvers.greedy import greedy
from fedhybrid.planner.solvers.milp import milp
from fedhybrid.planner.solvers.simple import checkpoint_blocks, keep_all, recompute_all

__all__ = ["SOLVERS", "Decisions", "Effort", "Solution", "Solver", "greedy"]

SOLVERS: dict[str, Solver] = {
    "checkpoint-blocks": checkpoint_blocks,
    "greedy": greedy,
    "keep-all": keep_all,
    "milp": milp,
    "recompute-all": recompute_all,
}
