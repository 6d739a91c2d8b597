"""Moves on a simulator: repair at the peak, prune what is not needed, and a local search round one decision."""

from __future__ import annotations

from fedhybrid.planner.problem import FIRST_PACK, KEEP, TRANSIENT, Problem
from fedhybrid.planner.simulator import Simulator
from fedhybrid.planner.solvers.base import Decisions, Effort, Solution, error_squared, least_seconds, reorders_sums
from fedhybrid.planner.spreading import Spreading

__all__ = ["Search"]

# A split counts as faster from this share on; measured seconds are not better than that.
_FASTER_RATIO = 0.9

# Rounds of repair that may pass without a new smallest peak.
_PATIENCE = 8


class Search:
    """One simulator and the moves on it."""

    def __init__(self, problem: Problem, limit_bytes: int, effort: Effort) -> None:
        self.problem, self.limit_bytes, self.effort = problem, limit_bytes, effort
        self.simulator = Simulator(problem)
        effort.work += self.simulator.work
        self.fixed: frozenset[int] = frozenset()
        self.free = set(problem.candidates)
        self.spreading = Spreading(problem)
        self.forms = _faster_forms(problem, effort)

    @property
    def fits(self) -> bool:
        """Whether the peak is within the limit."""
        return self.simulator.peak_bytes <= self.limit_bytes

    def solution(self) -> Solution:
        """The simulator's decisions as they are now."""
        sim, decisions = self.simulator, dict(sorted(self.simulator.decisions.items()))
        least = least_seconds(self.problem, split=self.effort.split, inexact=reorders_sums(self.problem, decisions))
        extra = sim.extra_seconds
        return Solution(self.problem, decisions, sim.peak_bytes, extra, min(least, extra))

    def start(self, decisions: Decisions) -> None:
        """Takes up exactly these decisions."""
        before = self.simulator.work
        self.simulator.reset(decisions)
        self.effort.work += self.simulator.work - before

    def attempt(self, changes: Decisions) -> tuple[int, float]:
        """Peak and extra seconds after some changes; taking one back is work, too, and goes through here."""
        before = self.simulator.work
        self.simulator.update(changes)
        self.effort.work += self.simulator.work - before
        return self.simulator.peak_bytes, self.simulator.extra_seconds

    def repair(self) -> None:
        """Frees bytes at the peak until it fits or nothing there can be freed any more."""
        sim = self.simulator
        smallest, kept_smallest = sim.peak_bytes, dict(sim.decisions)
        stuck = 0
        while sim.peak_bytes > self.limit_bytes and not self.effort.spent:
            moves = self._moves_at_peak()
            if not moves:
                break
            peak, _ = self.attempt(moves)
            if peak < smallest:
                smallest, kept_smallest, stuck = peak, dict(sim.decisions), 0
            else:
                stuck += 1
                if stuck > _PATIENCE:
                    break
        if sim.peak_bytes > self.limit_bytes:
            self.start(kept_smallest)
            self._shrink()

    def _moves_at_peak(self) -> Decisions:
        """Decisions that free bytes at the peak, best bytes per second first, up to the deficit."""
        sim = self.simulator
        options = [*self._options_at_peak(), *self._form_moves(sim.peak_position)]
        options.sort(key=lambda option: (-option[0], option[1]))
        deficit, chosen = sim.peak_bytes - self.limit_bytes, {}
        room = self.effort.max_error**2 - error_squared(self.problem, sim.decisions)
        merged = dict(sim.decisions)
        for _, subject, option, nbytes in options:
            error = self._error(subject, option)
            if subject in chosen or error**2 > room or self.spreading.forbids(subject, option, merged):
                continue
            chosen[subject] = merged[subject] = option
            room -= error**2
            deficit -= nbytes
            if deficit <= 0 or len(chosen) >= 1 + len(options) // 3:
                break
        return chosen

    def ranked_at_peak(self) -> list[tuple[int, int]]:
        """(storage, option) of what may be done about the tensors alive at the peak, most bytes per second first."""
        room = self.effort.max_error**2 - error_squared(self.problem, self.simulator.decisions)
        ranked = sorted(self._options_at_peak(), key=lambda option: (-option[0], option[1]))
        return [
            (s, option)
            for _, s, option, _ in ranked
            if self._error(s, option) ** 2 <= room and not self.spreading.forbids(s, option, self.simulator.decisions)
        ]

    def _options_at_peak(self) -> list[tuple[float, int, int, int]]:
        sim = self.simulator
        at = sim.peak_position
        busy = {s for call in sim.calls(at) for s in (*call.op.reads, *call.births)}
        memo: dict[int, float] = {}
        options: list[tuple[float, int, int, int]] = []
        for storage in sim.alive_at(at):
            if storage not in self.free or storage in self.fixed:
                continue
            if storage in busy and any(a <= at == e for a, e in sim.lives(storage)):
                continue  # dropping it would not help: this very position needs it
            options += self._drops(storage, memo)
        return options

    def _drops(self, storage: int, memo: dict[int, float]) -> list[tuple[float, int, int, int]]:
        """(bytes per second, storage, option, bytes) of every way not to keep a storage."""
        problem, nbytes = self.problem, self.problem.nbytes[storage]
        now = self.simulator.decisions.get(storage, KEEP)
        found = []
        if self.effort.recompute and storage in problem.replays and now < TRANSIENT:
            found.append((nbytes / max(self._chain_seconds(storage, memo), 1e-9), storage, TRANSIENT, nbytes))
        for option in problem.options[storage] if now == KEEP else ():
            pack = problem.pack_by_option.get((storage, option))
            if pack is not None:
                calls = problem.encodes[storage, option], problem.decodes[storage, option]
                seconds = sum(call.forms[0].seconds for call in calls)
                saved = nbytes - pack.nbytes
                found.append((saved / max(seconds, 1e-9), storage, option, saved))
        return found

    def _error(self, subject: int, option: int) -> float:
        pack = self.problem.pack_by_option.get((subject, option))
        return 0.0 if pack is None else pack.error

    def _form_moves(self, at: int) -> list[tuple[float, int, int, int]]:
        if not self.effort.split:
            return []
        sim, problem = self.simulator, self.problem
        found = []
        for call in sim.calls(at):
            subject = problem.subject_of(call.op)
            chosen = sim.form_of(call.op)
            now = call.op.forms[chosen]
            for option in range(chosen + 1, len(call.op.forms)):
                form = call.op.forms[option]
                if subject in self.fixed or not (form.exact or self.effort.inexact):
                    continue
                nbytes = now.workspace_bytes - form.workspace_bytes
                if form.in_place and not now.in_place:
                    nbytes += max(problem.nbytes[s] for s in form.in_place)
                if nbytes > 0:
                    seconds = form.seconds - now.seconds
                    found.append((nbytes / max(seconds, 1e-9), subject, option, nbytes))
        return found

    def _chain_seconds(self, storage: int, memo: dict[int, float]) -> float:
        """Seconds to make a storage again from what is kept, each part of the chain counted once per reader."""
        if storage in memo:
            return memo[storage]
        problem, decisions = self.problem, self.simulator.decisions
        option = decisions.get(storage, KEEP)
        if option >= FIRST_PACK or storage not in problem.replays:
            pair = (problem.encodes.get((storage, option)), problem.decodes.get((storage, option)))
            return sum(call.forms[0].seconds for call in pair if call is not None)
        order, stack, seen = [], [storage], set()
        while stack:
            top = stack.pop()
            if top in seen:
                continue
            seen.add(top)
            order.append(top)
            for source in problem.replays[top].reads:
                dropped = 0 < decisions.get(source, 0) < FIRST_PACK or source not in problem.uses
                if dropped and source in problem.replays and source not in memo:
                    stack.append(source)
        total = sum(problem.replays[s].forms[0].seconds for s in order)
        memo[storage] = total
        return total

    def _shrink(self) -> None:
        """Tries the other options of whatever is alive at the peak, one at a time, while the peak falls."""
        sim, improved = self.simulator, True
        while improved and sim.peak_bytes > self.limit_bytes and not self.effort.spent:
            improved = False
            peak, at = sim.peak_bytes, sim.peak_position
            for subject, options in self._subjects_at(at):
                current = sim.decisions.get(subject, 0)
                for option in options:
                    if option == current or self.effort.spent:
                        continue
                    after, _ = self.attempt({subject: option})
                    if after < peak:
                        improved = True
                        break
                    self.attempt({subject: current})
                if improved:
                    break

    def _subjects_at(self, at: int) -> list[tuple[int, list[int]]]:
        sim, problem = self.simulator, self.problem
        alive = set(sim.alive_at(at))
        calls = list(sim.calls(at))
        for call in calls:
            alive.update(call.op.reads, call.births)
        sources = {q for s in alive if s in problem.replays for q in problem.replays[s].reads}
        found: list[tuple[int, list[int]]] = []
        if self.effort.split:
            for call in calls:
                forms = [i for i, f in enumerate(call.op.forms) if f.exact or self.effort.inexact]
                if len(forms) > 1:
                    found.append((problem.subject_of(call.op), forms))
        found += [(storage, self._allowed(storage)) for storage in sorted((alive | sources) & self.free)]
        return [(subject, options) for subject, options in found if subject not in self.fixed]

    def prune(self) -> None:
        """Undoes, dearest first, whatever still fits; else lets it stay once it has been made again."""
        sim = self.simulator
        memo: dict[int, float] = {}
        calls = {s for s in sim.decisions if s >= len(self.problem.nbytes)}
        storages = [s for s in sim.decisions if s not in calls]
        dearest = sorted(storages, key=lambda s: (-self._chain_seconds(s, memo), s))
        extra = sim.extra_seconds
        for subject in (*dearest, *sorted(calls)):
            now = sim.decisions.get(subject, 0)
            for milder in self._milder(subject, now):
                if self.effort.spent:
                    return
                peak, seconds = self.attempt({subject: milder})
                if peak <= self.limit_bytes and seconds <= extra + (1e-12 if subject in calls else 0.0):
                    extra = seconds
                    break
                self.attempt({subject: now})

    def _milder(self, subject: int, now: int) -> list[int]:
        """Options that may cost less than the present one."""
        if subject >= len(self.problem.nbytes):
            return list(range(now))
        options = self._allowed(subject)
        packs = [option for option in options if option >= FIRST_PACK and option != now]
        return [option for option in options if option < min(now, FIRST_PACK)] + packs

    def _allowed(self, storage: int) -> list[int]:
        """Options of a storage under the actions and the error that are still allowed."""
        decisions = self.simulator.decisions
        now = self._error(storage, decisions.get(storage, KEEP))
        room = self.effort.max_error**2 - error_squared(self.problem, decisions) + now**2
        return [
            option
            for option in self.problem.options[storage]
            if (self.effort.recompute or not KEEP < option < FIRST_PACK)
            and self._error(storage, option) ** 2 <= room
            and not self.spreading.forbids(storage, option, decisions)
        ]

    def improve(self, best: Solution, good_enough: float) -> Solution:
        """Forbids one dear decision at a time and rebuilds the rest round it, until nothing gets cheaper."""
        tried: set[int] = set()
        while not self.effort.spent and best.extra_seconds > good_enough:
            self.start(best.decisions)
            memo: dict[int, float] = {}
            dear = [s for s in best.decisions if s < len(self.problem.nbytes) and s not in tried]
            if not dear:
                break
            storage = max(dear, key=lambda s: (self._chain_seconds(s, memo), -s))
            tried.add(storage)
            self.fixed = frozenset({storage})
            self.attempt({storage: KEEP})
            self.repair()
            if self.fits:
                self.prune()
                found = self.solution()
                if found.extra_seconds < best.extra_seconds - 1e-12:
                    best = found
                    tried = {s for s in tried if s not in best.decisions} | {storage}
            self.fixed = frozenset()
        return best


def _faster_forms(problem: Problem, effort: Effort) -> Decisions:
    """Chunked forms that are plainly faster than the whole call and give its bits: always worth taking."""
    found: Decisions = {}
    for call in problem.ops if effort.split else ():
        best = min(range(len(call.forms)), key=lambda i: call.forms[i].seconds if call.forms[i].exact else float("inf"))
        if call.forms[best].seconds < _FASTER_RATIO * call.forms[0].seconds:
            found[problem.subject_of(call)] = best
    return found
