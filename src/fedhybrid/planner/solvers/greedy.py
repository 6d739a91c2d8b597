"""Greedy repair from several structural seeds, then pruning and a short local search.

A seed says what is dropped to begin with. Repair: at the peak, drop what frees the most bytes for each second of
replay, as much at once as the deficit asks for. Prune: dearest first, keep again whatever still fits. Search: force the
dearest replayed storage to stay, repair and prune round it, and take the result if it is cheaper.

One seed alone is bad: from nothing, MobileNetV2 at 20 % seems infeasible; from the cheap seed it is easy; transformers
want their block inputs kept. The ratio is FedHybrid's memory saving per second (methods' section d, RECONSTRUCTED).
"""

from __future__ import annotations

from fedhybrid.planner.problem import Problem
from fedhybrid.planner.schedule import Decision
from fedhybrid.planner.solvers.base import Decisions, Effort, Solution
from fedhybrid.planner.solvers.simple import block_inputs, keep_only
from fedhybrid.planner.work import op_work

__all__ = ["greedy"]

_CHEAP_KINDS = ("norm", "elementwise", "pool", "copy", "reduce")
_SEARCH_TRIES = 12


def greedy(problem: Problem, limit_bytes: int, effort: Effort) -> Solution:
    """See the module's text."""
    best: Solution | None = None
    smallest: Solution | None = None
    for seed in _seeds(problem):
        found = _repair(problem, effort.evaluate(problem, seed), limit_bytes, effort)
        if found.peak_bytes <= limit_bytes:
            found = _prune(problem, found, limit_bytes, effort)
            if best is None or found.extra_seconds < best.extra_seconds:
                best = found
        if smallest is None or found.peak_bytes < smallest.peak_bytes:
            smallest = found
        if best is not None and (best.extra_seconds == 0 or effort.spent):
            break
    if best is None:
        assert smallest is not None
        return smallest
    return _search(problem, best, limit_bytes, effort)


def _seeds(problem: Problem) -> list[Decisions]:
    """Nothing; cheap values; all but block inputs; all but every second and fourth block input."""
    cheap = {s: Decision.TRANSIENT for s in problem.candidates if _kind(problem, s) in _CHEAP_KINDS}
    seeds: list[Decisions] = [{}, cheap]
    blocks = block_inputs(problem)
    for stride in (1, 2, 4):
        if len(blocks) >= 2 * stride:
            kept = blocks[::stride]
            seeds.append(keep_only(problem, kept, Decision.RECOMPUTE))
            seeds.append(keep_only(problem, kept, Decision.TRANSIENT))
    return seeds


def _kind(problem: Problem, storage: int) -> str:
    return op_work(problem.graph, problem.graph.ops[problem.replays[storage].op]).kind


def _repair(
    problem: Problem, start: Solution, limit_bytes: int, effort: Effort, fixed: frozenset[int] = frozenset()
) -> Solution:
    """Drops storages until the peak fits or nothing at the peak can be dropped any more."""
    now = smallest = start
    stuck = 0
    while now.peak_bytes > limit_bytes and not effort.spent:
        moves = _moves_at_peak(problem, now, limit_bytes, fixed)
        if not moves:
            break
        after = effort.evaluate(problem, {**now.decisions, **moves})
        if after.peak_bytes < smallest.peak_bytes:
            smallest, stuck = after, 0
        else:
            stuck += 1
            if stuck > 8:
                break
        now = after
    if now.peak_bytes > limit_bytes:
        now = _shrink(problem, smallest, limit_bytes, effort, fixed)
    return now


def _moves_at_peak(problem: Problem, now: Solution, limit_bytes: int, fixed: frozenset[int]) -> Decisions:
    """Storages alive at the peak for a later use, best bytes per second of replay first, up to the deficit."""
    schedule, nbytes = now.schedule, problem.nbytes
    at = schedule.peak_at
    busy = {*schedule.steps[at].reads, *schedule.steps[at].births}
    memo: dict[int, float] = {}
    options: list[tuple[float, int, Decision]] = []
    for instance, storage in enumerate(schedule.storage_of):
        if not schedule.born[instance] <= at <= schedule.last[instance] or storage in fixed:
            continue
        decision = now.decisions.get(storage, Decision.KEEP)
        if storage not in problem.replays or storage not in problem.uses or decision is Decision.TRANSIENT:
            continue
        if instance in busy and schedule.last[instance] == at:
            continue  # dropping it would not help: this very call needs it
        seconds = _chain_seconds(problem, storage, now.decisions, memo)
        options.append((nbytes[storage] / max(seconds, 1e-9), storage, Decision.TRANSIENT))
    options.sort(key=lambda option: (-option[0], option[1]))
    deficit, chosen = now.peak_bytes - limit_bytes, {}
    for _, storage, decision in options:
        chosen[storage] = decision
        deficit -= nbytes[storage]
        if deficit <= 0 or len(chosen) >= 1 + len(options) // 3:
            break
    return chosen


def _chain_seconds(problem: Problem, storage: int, decisions: Decisions, memo: dict[int, float]) -> float:
    """Seconds to make a storage again from what is kept, each part of the chain counted once per reader."""
    if storage in memo:
        return memo[storage]
    order, stack, seen = [], [storage], set()
    while stack:
        top = stack.pop()
        if top in seen:
            continue
        seen.add(top)
        order.append(top)
        for source in problem.replays[top].reads:
            dropped = decisions.get(source) or source not in problem.uses
            if dropped and source in problem.replays and source not in memo:
                stack.append(source)
    total = sum(problem.replays[s].seconds for s in order)
    memo[storage] = total
    return total


def _shrink(problem: Problem, start: Solution, limit_bytes: int, effort: Effort, fixed: frozenset[int]) -> Solution:
    """Tries the other two decisions of each storage alive at the peak, one at a time, while the peak falls."""
    now, improved = start, True
    while improved and now.peak_bytes > limit_bytes and not effort.spent:
        improved = False
        schedule, at = now.schedule, now.schedule.peak_at
        alive = {s for i, s in enumerate(schedule.storage_of) if schedule.born[i] <= at <= schedule.last[i]}
        sources = {q for s in alive if s in problem.replays for q in problem.replays[s].reads}
        for storage in sorted((alive | sources) - fixed):
            if storage not in problem.replays or storage not in problem.uses:
                continue
            current = now.decisions.get(storage, Decision.KEEP)
            for decision in Decision:
                if decision is current or effort.spent:
                    continue
                after = effort.evaluate(problem, {**now.decisions, storage: decision})
                if after.peak_bytes < now.peak_bytes:
                    now, improved = after, True
                    break
            if improved:
                break
    return now


def _prune(
    problem: Problem, start: Solution, limit_bytes: int, effort: Effort, fixed: frozenset[int] = frozenset()
) -> Solution:
    """Keeps again, dearest first, whatever still fits; else lets it stay once it has been made again."""
    now = start
    memo: dict[int, float] = {}
    dearest = sorted(now.decisions, key=lambda s: (-_chain_seconds(problem, s, now.decisions, memo), s))
    for storage in dearest:
        for milder in (Decision.KEEP, Decision.RECOMPUTE):
            if effort.spent or milder >= now.decisions.get(storage, Decision.KEEP):
                break
            after = effort.evaluate(problem, {**now.decisions, storage: milder})
            if after.peak_bytes <= limit_bytes and after.extra_seconds <= now.extra_seconds:
                now = after
                break
    return now


def _search(problem: Problem, start: Solution, limit_bytes: int, effort: Effort) -> Solution:
    """Forces one dear storage at a time to stay and rebuilds the rest round it."""
    best = start
    memo: dict[int, float] = {}
    dearest = sorted(best.decisions, key=lambda s: (-_chain_seconds(problem, s, best.decisions, memo), s))
    for storage in dearest[:_SEARCH_TRIES]:
        if effort.spent:
            break
        fixed = frozenset({storage})
        forced = effort.evaluate(problem, {**best.decisions, storage: Decision.KEEP})
        found = _repair(problem, forced, limit_bytes, effort, fixed)
        if found.peak_bytes <= limit_bytes:
            found = _prune(problem, found, limit_bytes, effort)
            if found.extra_seconds < best.extra_seconds:
                best = found
    return best
