"""FedHybrid's own rule: the largest memory saving per second first (RECONSTRUCTED), with its fallback ladder.

While the simulated peak is above the limit, the action with the largest MPS is taken among the tensors alive at the
peak, one at a time: bytes over the seconds to make the tensor again from what the plan keeps, or bytes saved over the
seconds to pack and unpack it. Then the dearest choices are set back to keep where the limit still holds. If that does
not fit: fewer bits, then coarser segments to recompute.

Source: FedHybrid, SenSys 2024; the formula and the ladder are reconstructed from its ancestors (Capuchin, Melon, Sage).
"""

from __future__ import annotations

from fedhybrid.planner.problem import RECOMPUTE, Problem
from fedhybrid.planner.solvers.base import Decisions, Effort, Solution
from fedhybrid.planner.solvers.search import Search
from fedhybrid.planner.solvers.simple import block_inputs, keep_only

__all__ = ["greedy_mps"]

_FEWER_BITS = ("affine-4", "affine-2")


def greedy_mps(problem: Problem, limit_bytes: int, effort: Effort) -> Solution:
    """See the module's text."""
    fewer = {(p.storage, p.option) for p in problem.packs if p.codec in _FEWER_BITS}
    ladder: list[tuple[Decisions, set[tuple[int, int]]]] = [({}, fewer)]
    if fewer:
        ladder.append(({}, set()))
    if effort.recompute:
        blocks = block_inputs(problem)
        for stride in (1, 2, 4):
            if len(blocks) >= 2 * stride:
                ladder.append((keep_only(problem, blocks[::stride], RECOMPUTE), set()))
    search = Search(problem, limit_bytes, effort)
    smallest: Solution | None = None
    for seed, banned in ladder:
        search.start(seed)
        _descend(search, banned)
        if search.fits:
            search.prune()
            return search.solution()
        found = search.solution()
        if smallest is None or found.peak_bytes < smallest.peak_bytes:
            smallest = found
    assert smallest is not None
    return smallest


def _descend(search: Search, banned: set[tuple[int, int]]) -> None:
    """Takes the best action at the peak until the peak fits or nothing is left to do there."""
    while not search.fits and not search.effort.spent:
        best = next((choice for choice in search.ranked_at_peak() if choice not in banned), None)
        if best is None:
            return
        search.attempt(dict([best]))
