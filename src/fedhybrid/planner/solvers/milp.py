"""The relaxed program's optimum as a seed, repaired on the exact timeline; with a proof of how far it is from the best.

Where chains are short (transformers, inverted residuals) the repaired optimum is within a fraction of a percent of the
bound. Where they are long (residual networks at small budgets) the program is solved again with what the simulator has
learnt: how often each storage was made again, and how far each position climbed above the limit.

Splits that change the order of sums are used only where nothing else fits or where they save a good share of the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fedhybrid.planner.problem import Problem
from fedhybrid.planner.simulator import Simulator
from fedhybrid.planner.solvers.base import Decisions, Effort, Solution
from fedhybrid.planner.solvers.greedy import best_of, structural_seeds
from fedhybrid.planner.solvers.relaxation import Relaxation
from fedhybrid.planner.solvers.search import Search

__all__ = ["milp"]

_ROUNDS = 4  # solutions of the program, each with what was learnt from the one before

# Share of the step's seconds that inexact splits must save before they are preferred to equal bits.
_WORTH_RATIO = 0.02


def milp(problem: Problem, limit_bytes: int, effort: Effort) -> Solution:
    """See the module's text."""
    if not effort.recompute and not problem.packs:
        only = best_of(Search(problem, limit_bytes, effort), [{}], 0.0)
        return replace(only, bound_seconds=min(0.0, only.extra_seconds))
    relaxation = Relaxation(problem, limit_bytes, effort)
    first = relaxation.solve({}, {})
    bound_seconds = first.bound_seconds if first is not None else 0.0
    seed = first.decisions if first is not None else None
    found: Solution | None = None
    if effort.split and effort.inexact:
        effort.inexact = False
        exact = Search(problem, limit_bytes, effort)
        found = best_of(exact, _seeds(relaxation, seed), bound_seconds)
        effort.inexact = True
        effort.work = 0
        worth = _WORTH_RATIO * problem.seconds
        if found.peak_bytes <= limit_bytes and found.extra_seconds - bound_seconds < worth:
            return replace(found, bound_seconds=bound_seconds)
    search = Search(problem, limit_bytes, effort)
    other = best_of(search, _seeds(relaxation, seed), bound_seconds)
    if found is not None and found.peak_bytes <= limit_bytes:
        dear = found.extra_seconds - other.extra_seconds >= _WORTH_RATIO * problem.seconds
        other = other if other.peak_bytes <= limit_bytes and dear else found
    return replace(other, bound_seconds=min(bound_seconds, other.extra_seconds))


def _seeds(relaxation: Relaxation, first: Decisions | None) -> Iterator[Decisions]:
    problem, decisions = relaxation.problem, first
    weights: dict[int, float] = {}
    tighter_bytes: dict[int, int] = {}
    simulator = Simulator(problem)
    yielded = []
    for _ in range(_ROUNDS):
        if decisions is None:
            break
        if decisions not in yielded:
            yielded.append(decisions)
            yield decisions
        simulator.reset(decisions)
        _learn(simulator, relaxation.limit_bytes, weights, tighter_bytes)
        solved = relaxation.solve(weights, tighter_bytes)
        decisions = solved.decisions if solved is not None else None
    yield from structural_seeds(problem) if relaxation.effort.recompute else [{}]


def _learn(simulator: Simulator, limit_bytes: int, weights: dict[int, float], tighter_bytes: dict[int, int]) -> None:
    """Halfway from what was believed to what the simulator shows."""
    problem = simulator.problem
    tops = simulator.tops()
    runs: dict[int, int] = {}
    for position in range(problem.backward_at, len(problem.ops)):
        for call in simulator.prelude(position):
            for storage in call.births:
                runs[storage] = runs.get(storage, 0) + 1
        over = int(tops[position]) - limit_bytes
        if over > 0:
            tighter_bytes[position] = tighter_bytes.get(position, 0) + over // 2
    for storage, count in runs.items():
        weights[storage] = (weights.get(storage, 1.0) + count) / 2
