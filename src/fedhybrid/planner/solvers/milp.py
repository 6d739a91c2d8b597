"""The relaxed program's optimum as a seed, repaired on the exact timeline; with a proof of how far it is from the best.

Where chains are short (transformers, inverted residuals) the repaired optimum is within a fraction of a percent of the
bound. Where they are long (residual networks at small budgets) the program is solved again with what the simulator has
learnt: how often each storage was made again, and how far each position climbed above the limit.

Splits that change the order of sums are used only where nothing else fits or where they save a good share of the step.
The bound of a plan without them is over all plans without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fedhybrid.planner.problem import Problem
from fedhybrid.planner.simulator import Simulator
from fedhybrid.planner.solvers.base import Decisions, Effort, Solution
from fedhybrid.planner.solvers.greedy import best_of, structural_seeds
from fedhybrid.planner.solvers.relaxation import Relaxation, Relaxed
from fedhybrid.planner.solvers.search import Search

__all__ = ["milp"]

_ROUNDS = 4  # solutions of the program, each with what was learnt from the one before

# Share of the step's seconds that inexact splits must save before they are preferred to equal bits.
_WORTH_RATIO = 0.1


def milp(problem: Problem, limit_bytes: int, effort: Effort) -> Solution:
    """See the module's text."""
    if not effort.recompute and not problem.packs:
        return best_of(Search(problem, limit_bytes, effort), [{}], 0.0)
    only_exact = Relaxation(problem, limit_bytes, replace(effort, inexact=False) if effort.split else effort)
    relaxed = only_exact.solve({}, {})
    exact, bound_seconds = _repaired(only_exact, relaxed), _bound_seconds(only_exact, relaxed)
    found = exact
    if effort.split and effort.inexact:
        worth_seconds = _WORTH_RATIO * problem.seconds
        relaxation = Relaxation(problem, limit_bytes, effort)
        relaxed = relaxation.solve({}, {})
        least_seconds = _bound_seconds(relaxation, relaxed)
        if exact.peak_bytes > limit_bytes or exact.extra_seconds - least_seconds >= worth_seconds:
            other = _repaired(relaxation, relaxed)
            cheaper = other.peak_bytes <= limit_bytes and exact.extra_seconds - other.extra_seconds >= worth_seconds
            if cheaper or exact.peak_bytes > limit_bytes:
                found, bound_seconds = other, least_seconds
    return replace(found, bound_seconds=min(bound_seconds, found.extra_seconds))


def _bound_seconds(relaxation: Relaxation, relaxed: Relaxed | None) -> float:
    return relaxed.bound_seconds if relaxed is not None else relaxation.least_seconds


def _repaired(relaxation: Relaxation, first: Relaxed | None) -> Solution:
    """The best that repair makes of the program's solution and of the other seeds."""
    seeds = _seeds(relaxation, first.decisions if first is not None else None)
    search = Search(relaxation.problem, relaxation.limit_bytes, relaxation.effort)
    return best_of(search, seeds, _bound_seconds(relaxation, first))


def _seeds(relaxation: Relaxation, first: Decisions | None) -> Iterator[Decisions]:
    problem, decisions = relaxation.problem, first
    weights: dict[int, float] = {}
    tighter_bytes: dict[int, int] = {}
    simulator = Simulator(problem)
    seen = 0  # of its work
    yielded = []
    for _ in range(_ROUNDS):
        if decisions is None or relaxation.effort.spent:
            break
        if decisions not in yielded:
            yielded.append(decisions)
            yield decisions
        simulator.reset(decisions)
        relaxation.effort.work += simulator.work - seen
        seen = simulator.work
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
