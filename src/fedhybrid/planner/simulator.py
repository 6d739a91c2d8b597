"""The memory timeline under changing decisions: a change touches the few positions that it concerns, not the step.

A *position* is one op of the captured step with all that is placed around it: the calls that make its dropped inputs
again (its *prelude*), the encodes of what it was the last forward reader of, and the updates that it was the last to
hold up. A *life* of a storage is a stretch of positions over which one instance of it stays. Two arrays say everything:
`base[p]`, the bytes of all lives that reach into p from before, and `delta[p]`, how far p itself climbs above that.
The peak is the largest sum. A change of one decision rebuilds the preludes that involve the storage, moves the lives
that they lengthen or shorten, and looks again at the positions where a life begins or ends.

Rules that make this exact:
- A dropped storage is made again at the first use of a *segment* of its backward uses and stays until the segment's
  last use. Uses closer together than the option's window are one segment: all of them for RECOMPUTE, each its own for
  BRIEF.
- A dropped storage that is needed where no segment of it reaches is made as part of the prelude and dies in it, unless
  its next segment begins within the window (RECOMPUTE: at all): then that segment begins here.
- A storage that is kept lives until its last reader, preludes included. An update waits for the last reader of its
  parameter, preludes included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from heapq import heappop, heappush

import numpy as np

from fedhybrid.planner.position import Call, Segment, climb, fixed_lives, involved, segments_of
from fedhybrid.planner.problem import KEEP, PlanOp, PlanUpdate, Problem

__all__ = ["Simulator"]


class Simulator:
    """Exact bytes and extra seconds of a step under decisions that can be changed one by one.

    Attributes:
        problem: What is decided about.
        decisions: Subject (see `Problem`) -> option, where it is not the default.
        work: Calls looked at so far; what a change costs.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.decisions: dict[int, int] = {}
        self.work = 0
        count = len(problem.ops)
        self._nbytes = problem.nbytes
        self._option = [KEEP] * len(problem.nbytes)
        self._forms = [0] * len(problem.calls)
        self._segments: dict[int, list[Segment]] = {}
        self._dropped = bytearray(len(problem.nbytes))
        for storage in problem.intermediates:
            self._dropped[storage] = 1
            self._segments[storage] = []
        self._born, self._forward_end, self._direct_end = fixed_lives(problem)
        self._lives: list[list[tuple[int, int]]] = [[] for _ in problem.nbytes]
        self._prelude: list[list[Call]] = [[] for _ in range(count)]
        self._pulls: list[list[tuple[int, Segment]]] = [[] for _ in range(count)]
        self._encodes: list[list[PlanOp]] = [[] for _ in range(count)]
        self._touched: list[set[int]] = [set() for _ in problem.nbytes]
        self._spared: list[set[int]] = [set() for _ in problem.nbytes]  # positions that make it without need
        self._param_touched: dict[int, set[int]] = {u.param: set() for u in problem.updates}
        self._param_static: dict[int, int] = {}
        for position, op in enumerate(problem.ops):
            for param in op.params:
                self._param_static[param] = position
        self._grad_ready = [self._direct_end[u.grad] if u.grad >= 0 else 0 for u in problem.updates]
        self._updates_of: dict[int, list[int]] = {}
        for update in problem.updates:
            self._updates_of.setdefault(update.param, []).append(update.index)
        self._place = [-1] * len(problem.updates)
        self._updates: list[list[int]] = [[] for _ in range(count)]
        self._base = np.zeros(count + 1, dtype=np.int64)
        self._delta = np.zeros(count, dtype=np.int64)
        self._seconds = np.zeros(count)
        self._stale: set[int] = set(range(count))  # positions whose delta must be looked at again
        for update in problem.updates:
            self._place_update(update.index)
        for storage in range(len(problem.nbytes)):
            self._relive(storage)
        self._settle([])

    @property
    def peak_bytes(self) -> int:
        """Largest number of bytes live at any moment, resident bytes excluded."""
        return int((self._base[:-1] + self._delta).max()) + self.problem.held_bytes

    @property
    def peak_position(self) -> int:
        """The first position at which the peak is reached."""
        return int((self._base[:-1] + self._delta).argmax())

    def tops(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Bytes at the worst moment of each position."""
        return self._base[:-1] + self._delta + self.problem.held_bytes

    @property
    def extra_seconds(self) -> float:
        """Cost of everything that the step without decisions does not do."""
        return float(self._seconds.sum())

    def calls(self, position: int) -> Iterator[Call]:
        """What runs at a position, in order: prelude, the op itself, encodes."""
        yield from self._prelude[position]
        op = self.problem.ops[position]
        yield Call(op, op.births, ())
        for encode in self._encodes[position]:
            yield Call(encode, encode.births, ())

    def prelude(self, position: int) -> list[Call]:
        """What is made again for a position."""
        return self._prelude[position]

    def updates(self, position: int) -> list[int]:
        """Updates that follow a position's calls, in order."""
        return self._updates[position]

    def form_of(self, op: PlanOp) -> int:
        """Which of a call's forms is chosen."""
        return self._forms[op.uid]

    def lives(self, storage: int) -> list[tuple[int, int]]:
        """First and last position of each instance that outlives its position."""
        return self._lives[storage]

    def alive_at(self, position: int) -> list[int]:
        """Storages of which an instance reaches into the position from before."""
        return [s for s, lives in enumerate(self._lives) if any(a < position <= e for a, e in lives)]

    def decide(self, subject: int, option: int) -> None:
        """Changes one decision."""
        self.update({subject: option})

    def reset(self, decisions: Mapping[int, int]) -> None:
        """Changes whatever is needed to arrive at exactly `decisions`."""
        changes = {s: 0 for s in self.decisions if s not in decisions}
        changes.update((s, o) for s, o in decisions.items() if self.decisions.get(s, 0) != o)
        self.update(changes)

    def update(self, changes: Mapping[int, int]) -> None:
        """Changes several decisions at once."""
        dirty: list[int] = []
        first_call = len(self._nbytes)
        for subject, option in changes.items():
            if option:
                self.decisions[subject] = option
            else:
                self.decisions.pop(subject, None)
            if subject >= first_call:
                self._set_form(subject - first_call, option)
            else:
                dirty += self._set_option(subject, option)
        self._settle(dirty)

    def _set_form(self, uid: int, form: int) -> None:
        self._forms[uid] = form
        if uid < len(self.problem.ops):
            self._stale.add(uid)
        else:
            for storage in self.problem.calls[uid].births:
                self._stale |= self._touched[storage]

    def _set_option(self, storage: int, option: int) -> Iterable[int]:
        before = self._option[storage]
        if before == option:
            return ()
        problem = self.problem
        self._option[storage] = option
        dirty = self._touched[storage] | self._spared[storage]
        dirty.update(segment.start for segment in self._segments.get(storage, ()))
        if (old := problem.encodes.get((storage, before))) is not None:
            self._encodes[self._forward_end[storage]].remove(old)
            self._relive(old.births[0])
        if option == KEEP:
            self._dropped[storage] = 0
            self._segments.pop(storage, None)
        else:
            self._dropped[storage] = 1
            self._segments[storage] = segments = segments_of(problem.uses[storage], problem.window(option))
            dirty.update(segment.start for segment in segments)
            if (new := problem.encodes.get((storage, option))) is not None:
                self._encodes[self._forward_end[storage]].append(new)
        self._stale.add(self._forward_end[storage])
        # A prelude that had pulled one of the old segments must forget it.
        for position in list(dirty):
            self._pulls[position] = [pull for pull in self._pulls[position] if pull[0] != storage]
        self._relive(storage)
        return dirty

    def _settle(self, dirty: Iterable[int]) -> None:
        """Rebuilds preludes in order of position until nothing changes, then looks at the stale positions."""
        heap = sorted(set(dirty))
        queued = set(heap)
        while heap:
            position = heappop(heap)
            queued.discard(position)
            for later in self._rebuild(position):
                if later not in queued:
                    queued.add(later)
                    heappush(heap, later)
        for position in self._stale:
            self._look(position)
        self._stale.clear()

    def _covered(self, storage: int, position: int) -> bool:
        return any(segment.start < position <= segment.end for segment in self._segments[storage])

    def _rebuild(self, position: int) -> set[int]:
        """Makes a position's prelude anew; returns later positions that this may change."""
        problem, dropped = self.problem, self._dropped
        made: dict[int, None] = {}
        prelude: list[Call] = []
        for wanted in problem.ops[position].reads:
            if dropped[wanted] and wanted not in made and not self._covered(wanted, position):
                self._make(wanted, position, made, prelude)
        self.work += len(prelude)
        pulls: list[tuple[int, Segment]] = []
        for storage in made:
            reach = problem.window(self._option[storage])
            for segment in self._segments[storage]:
                if segment.natural > position:
                    # An earlier position's pull would cover this one; so the segment is free, or ours already.
                    if segment.natural - position <= reach and segment.start >= position:
                        pulls.append((storage, segment))
                    break
        later: set[int] = set()
        old_pulls = self._pulls[position]
        if pulls or old_pulls:
            keep = {id(segment) for _, segment in pulls}
            have = {id(segment) for _, segment in old_pulls}
            for storage, segment in old_pulls:
                if id(segment) not in keep and segment.start == position:
                    segment.start = segment.natural
                    later |= self._moved(storage, position, segment.natural)
            for storage, segment in pulls:
                if id(segment) not in have or segment.start != position:
                    before, segment.start = segment.start, position
                    later |= self._moved(storage, position, segment.natural)
                    if before != segment.natural:  # stolen from a later position that had pulled it
                        self._pulls[before] = [pull for pull in self._pulls[before] if pull[1] is not segment]
                        later.add(before)
            self._pulls[position] = pulls
        self._exchange(position, prelude)
        return later

    def _make(self, wanted: int, position: int, made: dict[int, None], prelude: list[Call]) -> None:
        """Adds the calls that make `wanted` from what can be read; without recursion, because chains are long."""
        problem, dropped = self.problem, self._dropped
        stack = [wanted]
        while stack:
            storage = stack[-1]
            if storage in made:
                stack.pop()
                continue
            op = problem.maker(storage, self._option[storage])
            missing = [s for s in op.reads if dropped[s] and s not in made and not self._covered(s, position)]
            if missing:
                stack.extend(missing)
                continue
            births, spare = [], []
            for birth in op.births:
                if dropped[birth] and birth not in made and not self._covered(birth, position):
                    made[birth] = None
                    births.append(birth)
                else:
                    spare.append(birth)
            prelude.append(Call(op, tuple(births), tuple(spare)))
            stack.pop()

    def _moved(self, storage: int, position: int, natural: int) -> set[int]:
        """Positions that see another segment when one that begins at `natural` moves to or from `position`."""
        self._relive(storage)
        around = self._touched[storage] | self._spared[storage]
        return {p for p in around if position < p <= natural} | {natural}

    def _exchange(self, position: int, prelude: list[Call]) -> None:
        """Puts a new prelude in place of the old one and tells storages and parameters."""
        old = self._prelude[position]
        if not old and not prelude:
            return
        self._prelude[position] = prelude
        before, after = involved(old), involved(prelude)
        for storage in before - after:
            self._touched[storage].discard(position)
        for storage in after - before:
            self._touched[storage].add(position)
        for storage in before ^ after:
            self._relive(storage)
        for storage in (spare for call in old for spare in call.spare):
            self._spared[storage].discard(position)
        for storage in (spare for call in prelude for spare in call.spare):
            self._spared[storage].add(position)
        self._tell_params(position, old, prelude)
        self._stale.add(position)

    def _tell_params(self, position: int, old: list[Call], prelude: list[Call]) -> None:
        """Moves the updates of parameters that a prelude now reads or no longer reads."""
        params_before = {param for call in old for param in call.op.params}
        params_after = {param for call in prelude for param in call.op.params}
        for param in params_before ^ params_after:
            if param in self._param_touched:
                if param in params_after:
                    self._param_touched[param].add(position)
                else:
                    self._param_touched[param].discard(position)
                for index in self._updates_of[param]:
                    self._place_update(index)

    def _place_update(self, index: int) -> None:
        update = self.problem.updates[index]
        place = max(
            self._grad_ready[index],
            self._param_static.get(update.param, 0),
            max(self._param_touched[update.param], default=0),
        )
        if self.problem.hold_gradients:
            place = len(self.problem.ops) - 1
        before = self._place[index]
        if place == before:
            return
        if before >= 0:
            self._updates[before].remove(index)
            self._stale.add(before)
        self._place[index] = place
        self._updates[place] = sorted([*self._updates[place], index])
        self._stale.add(place)
        if update.grad >= 0:
            self._relive(update.grad)

    def _relive(self, storage: int) -> None:
        """Brings a storage's lives up to date."""
        old, new = self._lives[storage], self._lives_now(storage)
        if old == new:
            return
        self._lives[storage] = new
        nbytes = self._nbytes[storage]
        for start, end in old:
            if (start, end) not in new:
                self._base[start + 1 : end + 1] -= nbytes
                self._stale.add(start)
                self._stale.add(min(end, len(self._delta) - 1))
        for start, end in new:
            if (start, end) not in old:
                self._base[start + 1 : end + 1] += nbytes
                self._stale.add(start)
                self._stale.add(min(end, len(self._delta) - 1))

    def _lives_now(self, storage: int) -> list[tuple[int, int]]:
        problem, born = self.problem, self._born[storage]
        pack = problem.pack_of.get(storage)
        if pack is not None:
            owner, option = pack
            if self._option[owner] != option:
                return []
            return [(self._forward_end[owner], max(self._touched[storage], default=self._forward_end[owner]))]
        if born < 0:
            return []
        if self._dropped[storage]:
            lives = [(born, self._forward_end[storage])]
            lives += [(segment.start, segment.end) for segment in self._segments[storage]]
            return lives
        end = max(self._direct_end[storage], max(self._touched[storage], default=0))
        for index in problem.updates_of_grad.get(storage, ()):
            end = max(end, self._place[index])
        if storage in problem.outputs:
            end = len(problem.ops)
        return [(born, end)]

    def _ends(self, storage: int, position: int) -> bool:
        """Whether the instance of `storage` that exists at `position` dies there."""
        for start, end in self._lives[storage]:
            if start <= position <= end:
                return end == position
        return True  # made in the prelude, for the prelude alone

    def _look(self, position: int) -> None:
        """Runs one position in the mind: how far it climbs above what reaches into it, and what it costs extra."""
        calls = list(self.calls(position))
        self.work += len(calls)
        updates = [self.problem.updates[index] for index in self._updates[position]]
        dying = self._dying(position, calls, updates)
        forms = [call.op.forms[self._forms[call.op.uid]] for call in calls]
        self._delta[position] = climb(self._nbytes, calls, forms, updates, dying)
        own = calls[len(self._prelude[position])].op
        self._seconds[position] = sum([form.seconds for form in forms]) - own.forms[0].seconds

    def _dying(self, position: int, calls: list[Call], updates: list[PlanUpdate]) -> list[list[int]]:
        """Storages whose instance dies after each call, and after each update behind them."""
        last: dict[int, int] = {}
        for index, call in enumerate(calls):
            for storage in (*call.op.reads, *call.births):
                last[storage] = index
        for number, update in enumerate(updates):
            if update.grad >= 0:
                last[update.grad] = len(calls) + number
        dying: list[list[int]] = [[] for _ in range(len(calls) + len(updates))]
        for storage, index in last.items():
            if self._ends(storage, position):
                dying[index].append(storage)
        return dying
