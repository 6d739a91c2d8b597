"""Greedy repair from several structural seeds, then pruning and a local search.

A seed says what is dropped to begin with. Repair: at the peak, do what frees the most bytes for each second that it
costs, as much at once as the deficit asks for. Prune: dearest first, undo whatever still fits. Search: forbid the
dearest decision, repair and prune round it, and take the result if it is cheaper.

One seed alone is bad: from nothing, MobileNetV2 at 20 % seems infeasible; from the cheap seed it is easy; transformers
want their block inputs kept. The ratio is FedHybrid's memory saving per second (methods' section d, RECONSTRUCTED).
"""

from __future__ import annotations

from collections.abc import Iterable

from fedhybrid.planner.problem import RECOMPUTE, TRANSIENT, Problem
from fedhybrid.planner.solvers.base import Decisions, Effort, Solution
from fedhybrid.planner.solvers.search import Search
from fedhybrid.planner.solvers.simple import block_inputs, keep_only
from fedhybrid.planner.work import op_work

__all__ = ["GOOD_ENOUGH_RATIO", "best_of", "greedy", "structural_seeds"]

# A plan within this share of the step's seconds above the proven bound is not improved any more.
GOOD_ENOUGH_RATIO = 2e-3

_CHEAP_KINDS = ("norm", "elementwise", "pool", "copy", "reduce")


def greedy(problem: Problem, limit_bytes: int, effort: Effort) -> Solution:
    """See the module's text."""
    search = Search(problem, limit_bytes, effort)
    if not effort.recompute and not effort.split and not problem.packs:
        return search.solution()
    return best_of(search, structural_seeds(problem) if effort.recompute else [{}], 0.0)


def best_of(search: Search, seeds: Iterable[Decisions], aim_seconds: float) -> Solution:
    """The cheapest solution found from several seeds, else that of the smallest peak.

    Args:
        search: Carries limit and effort.
        seeds: Looked at in order, until the aim is reached or the effort is spent.
        aim_seconds: Extra seconds that are good enough: a bound, or 0 for a step that is as fast as without a plan.
    """
    smallest: Solution | None = None
    best: Solution | None = None
    good_enough = aim_seconds + GOOD_ENOUGH_RATIO * search.problem.seconds
    for seed in seeds:
        search.start({**search.forms, **seed})
        search.repair()
        if search.fits:
            search.prune()
        found = search.solution()
        if search.fits and (best is None or found.extra_seconds < best.extra_seconds):
            best = found
        if smallest is None or found.peak_bytes < smallest.peak_bytes:
            smallest = found
        if best is not None and (best.extra_seconds <= good_enough or search.effort.spent):
            break
    if best is None:
        assert smallest is not None
        return smallest
    return search.improve(best, good_enough)


def structural_seeds(problem: Problem) -> list[Decisions]:
    """Nothing; cheap values; all but block inputs; all but every second and fourth block input."""
    cheap = {s: TRANSIENT for s in problem.candidates if s in problem.replays and _kind(problem, s) in _CHEAP_KINDS}
    seeds: list[Decisions] = [{}, cheap]
    blocks = block_inputs(problem)
    for stride in (1, 2, 4):
        if len(blocks) >= 2 * stride:
            kept = blocks[::stride]
            seeds.append(keep_only(problem, kept, RECOMPUTE))
            seeds.append(keep_only(problem, kept, TRANSIENT))
    return seeds


def _kind(problem: Problem, storage: int) -> str:
    return op_work(problem.graph, problem.graph.ops[problem.replays[storage].op]).kind
