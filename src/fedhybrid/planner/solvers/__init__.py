"""Solvers: budget -> decisions. Each is a function `(problem, limit_bytes, effort) -> Solution`."""

from fedhybrid.planner.solvers.base import Decisions, Effort, Solution, Solver, least_seconds
from fedhybrid.planner.solvers.floor import smallest_of
from fedhybrid.planner.solvers.greedy import greedy
from fedhybrid.planner.solvers.milp import milp
from fedhybrid.planner.solvers.mps import greedy_mps
from fedhybrid.planner.solvers.simple import all_encoded, checkpoint_blocks, keep_all, recompute_all

__all__ = [
    "NEEDED_ACTIONS",
    "SOLVERS",
    "Decisions",
    "Effort",
    "Solution",
    "Solver",
    "greedy",
    "least_seconds",
    "smallest_of",
]

SOLVERS: dict[str, Solver] = {
    "all-encoded": all_encoded,
    "checkpoint-blocks": checkpoint_blocks,
    "greedy": greedy,
    "greedy-mps": greedy_mps,
    "keep-all": keep_all,
    "milp": milp,
    "recompute-all": recompute_all,
}

# What a solver does whether it is allowed or not. All others do what the effort and the problem's packs allow and
# leave the rest: "greedy-mps" never splits, "all-encoded" does nothing but pack.
NEEDED_ACTIONS: dict[str, tuple[str, ...]] = {
    "checkpoint-blocks": ("recompute",),
    "recompute-all": ("recompute",),
}
