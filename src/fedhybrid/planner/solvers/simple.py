"""Reference solvers: nothing dropped, everything dropped, and one checkpoint a block as people set them by hand."""

from __future__ import annotations

from fedhybrid.planner.problem import RECOMPUTE, Problem
from fedhybrid.planner.solvers.base import Decisions, Effort, Solution

__all__ = ["all_encoded", "block_inputs", "checkpoint_blocks", "keep_all", "keep_only", "recompute_all"]


def keep_all(problem: Problem, limit_bytes: int, effort: Effort) -> Solution:
    """Keeps everything: the captured program as it is."""
    return Solution.of(problem, {}, split=effort.split)


def recompute_all(problem: Problem, limit_bytes: int, effort: Effort) -> Solution:
    """Drops everything that can be made again and keeps each replayed value until its last use."""
    return Solution.of(problem, keep_only(problem, [], RECOMPUTE), split=effort.split)


def all_encoded(problem: Problem, limit_bytes: int, effort: Effort) -> Solution:
    """Packs everything that may be packed, each tensor in its smallest form: what compression alone can reach."""
    smallest: dict[int, tuple[int, int]] = {}
    for pack in problem.packs:
        smallest[pack.storage] = min(smallest.get(pack.storage, (pack.nbytes, pack.option)), (pack.nbytes, pack.option))
    chosen = {storage: option for storage, (_, option) in smallest.items()}
    return Solution.of(problem, chosen, split=effort.split)


def checkpoint_blocks(problem: Problem, limit_bytes: int, effort: Effort) -> Solution:
    """Keeps only block inputs, as `torch.utils.checkpoint` round every block would."""
    return Solution.of(problem, keep_only(problem, block_inputs(problem), RECOMPUTE), split=effort.split)


def keep_only(problem: Problem, kept: list[int], otherwise: int) -> Decisions:
    """Decisions that keep `kept` and give every other candidate that can be made again `otherwise`."""
    staying = set(kept)
    return {s: otherwise for s in problem.candidates if s not in staying and s in problem.replays}


def block_inputs(problem: Problem) -> list[int]:
    """Candidates through which the whole forward pass flows (articulation points), in order.

    Between two of them lies one block: nothing else crosses from what is before to what is after.
    """
    last_forward: dict[int, int] = {}
    for position in range(problem.backward_at):
        for storage in problem.ops[position].reads:
            last_forward[storage] = position
    candidates = set(problem.candidates)
    crossing: set[int] = set()
    found: list[int] = []
    for position in range(problem.backward_at):
        op = problem.ops[position]
        crossing = {s for s in crossing if last_forward[s] > position}
        crossing.update(s for s in op.births if last_forward.get(s, -1) > position)
        if len(crossing) == 1 and (only := next(iter(crossing))) in candidates and (not found or found[-1] != only):
            found.append(only)
    return found
