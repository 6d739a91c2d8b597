"""A mixed-integer program that every plan satisfies: its optimum is a proven lower bound, its solution a seed.

One binary variable for each storage that may be dropped, one for each intermediate that is then made again on the way.
At each position of the backward pass, what is kept, what the op needs and what it gives birth to must fit; a dropped
storage is made again at least once, and with it the intermediates that it is made of. What the program does not see
(chains that are made again several times, or that are alive together with the op that wants them) only costs a real
plan more: so no plan is cheaper than the optimum. The form is Checkmate's (Jain et al., MLSys 2020) with the schedule
of the backward pass given and rematerialisation "at least once" instead of per stage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import highspy
import numpy as np

from fedhybrid.planner.problem import TRANSIENT, Pack, PlanOp, Problem
from fedhybrid.planner.simulator import Simulator
from fedhybrid.planner.solvers.base import Decisions, Effort, least_seconds
from fedhybrid.planner.spreading import Spreading

__all__ = ["Relaxation", "Relaxed"]

_MAX_ROWS = 160  # positions that are constrained; leaving some out keeps the bound valid
_MAX_NODES = 2000  # of branch and bound: a count, so that every machine stops at the same place
_MIB = float(1 << 20)


@dataclass(frozen=True)
class Relaxed:
    """A solution of the program, and seconds below which no plan can be."""

    decisions: Decisions
    bound_seconds: float


class Relaxation:
    """The program of one problem and one limit."""

    def __init__(self, problem: Problem, limit_bytes: int, effort: Effort) -> None:
        self.problem, self.limit_bytes, self.effort = problem, limit_bytes, effort
        drops = [s for s in problem.candidates if s in problem.replays] if effort.recompute else []
        self.columns: list[int] = [*drops, *(problem.intermediates if effort.recompute else ())]
        self.column_of = {storage: column for column, storage in enumerate(self.columns)}
        self.packs: list[Pack] = [pack for pack in problem.packs if pack.error <= effort.max_error]
        self.packs_of: dict[int, list[int]] = {}
        for number, pack in enumerate(self.packs):
            self.packs_of.setdefault(pack.storage, []).append(len(self.columns) + number)
        # An update may come later in a plan than it does here, and take its scratch memory with it.
        idle = [replace(update, workspace_bytes=0) for update in problem.updates]
        self.tops = Simulator(replace(problem, updates=idle)).tops()
        self.least_seconds = least_seconds(problem, split=effort.split, inexact=effort.inexact)

    def _fastest(self, op: PlanOp) -> float:
        return min(f.seconds for i, f in enumerate(op.forms) if not i or self._allowed(f.exact))

    def _allowed(self, exact: bool) -> bool:
        return self.effort.split and (exact or self.effort.inexact)

    def solve(self, weights: Mapping[int, float], tighter_bytes: Mapping[int, int]) -> Relaxed | None:
        """Solves the program; None if it has no solution within the limit.

        Args:
            weights: How often a storage is made again, where that is known better than "once". With weights, or with
                `tighter_bytes`, the bound is that of the changed program and proves nothing.
            tighter_bytes: Bytes by which a position is known to need more.
        """
        rows = self._rows(tighter_bytes)
        model = highspy.HighsLp()
        count = len(self.columns) + len(self.packs)
        model.num_col_, model.num_row_ = count, len(rows)
        model.col_cost_ = self._costs(weights) * 1e3
        model.col_lower_, model.col_upper_ = np.zeros(count), np.ones(count)
        model.row_lower_ = np.array([row[0] for row in rows])
        model.row_upper_ = np.full(len(rows), highspy.kHighsInf)
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = np.cumsum([0, *(len(row[1]) for row in rows)])
        model.a_matrix_.index_ = np.array([c for row in rows for c in row[1]], dtype=np.int32)
        model.a_matrix_.value_ = np.array([v for row in rows for v in row[2]])
        model.integrality_ = [highspy.HighsVarType.kInteger] * count
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        options = {"output_flag": False, "threads": 1, "random_seed": 0, "mip_max_nodes": _MAX_NODES}
        for name, value in {**options, "mip_rel_gap": 1e-4}.items():
            solver.setOptionValue(name, value)
        if self.effort.time_limit_s is not None:
            solver.setOptionValue("time_limit", self.effort.time_limit_s)
        solver.passModel(model)
        solver.run()
        if solver.getModelStatus() == highspy.HighsModelStatus.kInfeasible:
            return None
        values, info = solver.getSolution().col_value, solver.getInfo()
        if len(values) != count:
            return None
        bound_seconds = max(info.mip_dual_bound, 0.0) / 1e3 + self.least_seconds
        chosen = {s: TRANSIENT for s, value in zip(self.columns, values, strict=False) if value > 0.5}
        chosen = {s: o for s, o in chosen.items() if s in self.problem.uses}
        packed = zip(self.packs, values[len(self.columns) :], strict=True)
        chosen.update((pack.storage, pack.option) for pack, value in packed if value > 0.5)
        return Relaxed(chosen, bound_seconds)

    def _costs(self, weights: Mapping[int, float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Seconds of each column; an op with several outputs is paid once, so each of them bears its share."""
        replays = self.problem.replays
        sharing: dict[int, int] = {}
        for storage in self.columns:
            sharing[replays[storage].op] = sharing.get(replays[storage].op, 0) + 1
        costs = [self._fastest(replays[s]) * weights.get(s, 1.0) / sharing[replays[s].op] for s in self.columns]
        for pack in self.packs:
            calls = (self.problem.encodes, self.problem.decodes)
            costs.append(sum(made[pack.storage, pack.option].forms[0].seconds for made in calls))
        return np.array(costs)

    def _rows(self, tighter_bytes: Mapping[int, int]) -> list[tuple[float, list[int], list[float]]]:
        """Each row says: what is dropped of these columns is worth at least so much."""
        problem = self.problem
        rows: dict[tuple[int, ...], float] = {}
        for position in range(problem.backward_at, len(problem.ops)):
            op = problem.ops[position]
            least = int(self.tops[position]) - self._relief(op) + tighter_bytes.get(position, 0)
            if least <= self.limit_bytes:
                continue
            alive = tuple(self._alive(position))
            rows[alive] = max(rows.get(alive, 0.0), float(least - self.limit_bytes))
        dearest = sorted(rows.items(), key=lambda row: (-row[1], row[0]))[:_MAX_ROWS]
        found = []
        for alive, deficit in dearest:
            columns = [c for s in alive for c in self._columns_of(s)]
            found.append((deficit / _MIB, columns, [self._saved_bytes(c) / _MIB for c in columns]))
        for storage in self.packs_of:  # one way of not keeping it at a time
            columns = self._columns_of(storage)
            if len(columns) > 1:
                found.append((-1.0, columns, [-1.0] * len(columns)))
        spreading = Spreading(problem)
        for storage, packs in self.packs_of.items() if spreading.any_lossy else ():
            # nothing is made again from what has lost something
            lossy = [c for c in packs if self.packs[c - len(self.columns)].error > 0]
            for dependent in sorted(spreading.dependents[storage]) if lossy else ():
                if dependent in self.column_of:
                    found.append((-1.0, [self.column_of[dependent], *lossy], [-1.0] * (1 + len(lossy))))
        if 0 < self.effort.max_error < math.inf:
            errors = [(c, self.packs[c - len(self.columns)].error) for packs in self.packs_of.values() for c in packs]
            scale = self.effort.max_error**2
            found.append((-1.0, [c for c, _ in errors], [-(error**2) / scale for _, error in errors]))
        intermediates = set(problem.intermediates)
        for storage, column in self.column_of.items():
            for source in problem.replays[storage].reads:
                if source in intermediates:
                    found.append((0.0, [self.column_of[source], column], [1.0, -1.0]))
        return found

    def _columns_of(self, storage: int) -> list[int]:
        own = [self.column_of[storage]] if storage in self.column_of else []
        return own + self.packs_of.get(storage, [])

    def _saved_bytes(self, column: int) -> int:
        problem = self.problem
        if column < len(self.columns):
            return problem.nbytes[self.columns[column]]
        pack = self.packs[column - len(self.columns)]
        return problem.nbytes[pack.storage] - pack.nbytes

    def _relief(self, op: PlanOp) -> int:
        """Bytes that another form of the op, or an output in the memory of an input, could save at most."""
        problem = self.problem
        forms = [form for i, form in enumerate(op.forms) if not i or self._allowed(form.exact)]
        workspace = op.forms[0].workspace_bytes - min(form.workspace_bytes for form in forms)
        return workspace + max((problem.nbytes[s] for form in forms for s in form.in_place), default=0)

    def _alive(self, position: int) -> list[int]:
        """Candidates kept across a position that its op does not read."""
        problem = self.problem
        reads = set(problem.ops[position].reads)
        return [s for s in problem.candidates if s not in reads and problem.uses[s][-1] >= position]
