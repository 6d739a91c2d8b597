"""Solvers: budget -> decisions. Each is a function `(problem, limit_bytes, effort) -> Solution`."""

from fedhybrid.planner.solvers.base import Effort, Solution, Solver, solution
from fedhybrid.planner.solvers.greedy import greedy
from fedhybrid.planner.solvers.simple import checkpoint_blocks, keep_all, recompute_all

__all__ = ["SOLVERS", "Effort", "Solution", "Solver", "greedy", "solution"]

SOLVERS: dict[str, Solver] = {
    "checkpoint-blocks": checkpoint_blocks,
    "greedy": greedy,
    "keep-all": keep_all,
    "recompute-all": recompute_all,
}
