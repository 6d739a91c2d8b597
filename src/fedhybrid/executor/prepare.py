"""A captured and profiled step, ready to be planned for any budget and compiled for any plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fedhybrid.errors import ConfigError, InfeasibleBudgetError
from fedhybrid.graph import BatchSpec, StepGraph, capture_step, fingerprint, rewrite
from fedhybrid.opwork import OpWork
from fedhybrid.planner import (
    SOLVERS,
    CostTable,
    Effort,
    Plan,
    Problem,
    Solution,
    Update,
    build_schedule,
    describe_peak,
    eager_timeline,
    make_plan,
    make_problem,
    profile_step,
    updates_of,
)
from fedhybrid.protocols import Optimizer
from fedhybrid.registry import nearest_hint
from fedhybrid.units import Budget, parse_budget

__all__ = ["ACTIONS", "PlanOptions", "PreparedStep", "prepare_step"]

ACTIONS = ("recompute", "split")
_AUTO = "milp"


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """How to plan; see `PreparedStep.plan`.

    Raises:
        ConfigError: An option that is none; all of them at once.
    """

    actions: Sequence[str] = ACTIONS
    solver: str = "auto"
    max_gradient_error: float = 0.0
    time_limit_s: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if isinstance(self.actions, str) or not isinstance(self.actions, Sequence):
            problems.append(f"actions must be a sequence of names, such as {ACTIONS}, got {self.actions!r}")
        else:
            known = ", ".join(ACTIONS)
            problems += [f"unknown action {a!r}; known: {known}" for a in self.actions if a not in ACTIONS]
        if self.solver != "auto" and self.solver not in SOLVERS:
            hint = nearest_hint(self.solver, SOLVERS)
            problems.append(f"unknown solver {self.solver!r}.{hint} Known: auto, {', '.join(sorted(SOLVERS))}.")
        if not 0 <= self.max_gradient_error < 1:
            problems.append(f"max_gradient_error must lie in [0, 1), got {self.max_gradient_error}")
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            problems.append(f"time_limit_s must be positive or None, got {self.time_limit_s}")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, kw_only=True)
class PreparedStep:
    """One model, loss, batch shape and optimizer: captured once, planned and compiled as often as wanted.

    Attributes:
        fingerprint: Of the graph; plans carry it.
        example: The batch that it was captured with (used by `TrainStep.measure`, never copied).
    """

    model: nn.Module
    loss_fn: Callable[..., Any]
    optimizer: Optimizer
    example: Any
    spec: BatchSpec
    raw: StepGraph
    graph: StepGraph
    updates: list[Update]
    costs: CostTable
    fingerprint: str
    threads: int

    @cached_property
    def problem(self) -> Problem:
        """The step as the solvers see it."""
        timeline = eager_timeline(self.raw, self.costs, self.optimizer)
        return make_problem(
            self.graph, self.costs, self.optimizer, eager_timeline=timeline, eager_backward_at=self.raw.backward_at
        )

    @property
    def resident_bytes(self) -> int:
        """Parameters, buffers, optimizer state and batch (R)."""
        return self.problem.resident_bytes

    @property
    def eager_peak_bytes(self) -> int:
        """Peak of the step in PyTorch eager, resident bytes included (R + A). Computed, never run."""
        return self.problem.resident_bytes + self.problem.eager_peak_bytes

    @cached_property
    def keep_all_peak_bytes(self) -> int:
        """Peak of the captured program without any decision, resident bytes included."""
        return self.problem.resident_bytes + build_schedule(self.problem, {}).peak_bytes

    @property
    def kernel_s(self) -> float:
        """Sum over the distinct operators of their seconds."""
        return self.costs.kernel_s

    def priced(self, op_seconds: Callable[[OpWork], float]) -> PreparedStep:
        """The same step on another device: seconds by `op_seconds`, bytes as measured here."""
        return replace(self, costs=self.costs.priced(op_seconds))

    def keep_all(self) -> Plan:
        """The plan that decides nothing."""
        effort = Effort()
        return self._plan(SOLVERS["keep-all"](self.problem, 0, effort), None, "keep-all")

    def smallest(self, *, actions: Sequence[str] = ACTIONS) -> Plan:
        """The plan of the smallest peak that the default solver finds with these actions."""
        return self._plan(self._smallest(tuple(actions)), None, _AUTO)

    def plan(
        self,
        budget: str | int | Budget,
        *,
        actions: Sequence[str] = ACTIONS,
        solver: str = "auto",
        max_gradient_error: float = 0.0,
        time_limit_s: float | None = None,
    ) -> Plan:
        """The cheapest plan found whose peak is within the budget.

        Args:
            budget: Bytes, "96 MiB", or "40%" (R + 0.4 A).
            actions: What the plan may do; an empty sequence allows nothing but the captured program.
            solver: A name of `SOLVERS`, or "auto".
            max_gradient_error: Cap on the relative L2 error of the gradient; all actions here are loss-free.
            time_limit_s: Wall-clock limit; without one the effort is bounded by work alone and so reproducible.

        Raises:
            InfeasibleBudgetError: No plan found fits; says how much is needed and which operator blocks.
            ConfigError: An unknown action or solver, a budget that is none.
        """
        PlanOptions(actions=actions, solver=solver, max_gradient_error=max_gradient_error, time_limit_s=time_limit_s)
        limit = parse_budget(budget).resolve_bytes(
            resident_bytes=self.resident_bytes, eager_peak_bytes=self.eager_peak_bytes
        )
        name = "keep-all" if not actions else _AUTO if solver == "auto" else solver
        solve = SOLVERS[name]
        room = limit - self.resident_bytes
        effort = _effort(actions, time_limit_s=time_limit_s)
        found = solve(self.problem, room, effort)
        if found.peak_bytes > room:
            smallest = found if not actions or effort.spent else min(found, self._smallest(tuple(actions)), key=_peak)
            if solver == "auto":
                found = smallest
            if found.peak_bytes > room:
                raise InfeasibleBudgetError(
                    needed_bytes=self.resident_bytes + smallest.peak_bytes,
                    budget_bytes=limit,
                    blocker=describe_peak(self.problem, smallest),
                )
        return self._plan(found, limit, name)

    def confirmed(self, plan: Plan, here: Solution) -> Plan:
        """The plan with this machine's figures; they differ where operators need other scratch memory.

        Args:
            plan: Made here or elsewhere.
            here: Its decisions, scheduled on this machine's problem.

        Raises:
            InfeasibleBudgetError: Here the plan's peak is above the budget that it was made for.
        """
        if self.resident_bytes + here.peak_bytes == plan.peak_bytes:
            return plan
        plan = make_plan(
            self.problem,
            here,
            fingerprint=plan.fingerprint,
            budget_bytes=plan.budget_bytes,
            solver=plan.solver,
            threads=self.threads,
        )
        if plan.budget_bytes is not None and plan.peak_bytes > plan.budget_bytes:
            raise InfeasibleBudgetError(
                needed_bytes=plan.peak_bytes, budget_bytes=plan.budget_bytes, blocker=plan.peak_op
            )
        return plan

    def _smallest(self, actions: tuple[str, ...]) -> Solution:
        if actions not in self._floors:
            self._floors[actions] = SOLVERS[_AUTO](self.problem, 0, _effort(actions))
        return self._floors[actions]

    @cached_property
    def _floors(self) -> dict[tuple[str, ...], Solution]:
        return {}

    def _plan(self, found: Solution, budget_bytes: int | None, solver: str) -> Plan:
        return make_plan(
            self.problem,
            found,
            fingerprint=self.fingerprint,
            budget_bytes=budget_bytes,
            solver=solver,
            threads=self.threads,
        )


def _effort(actions: Sequence[str], *, time_limit_s: float | None = None) -> Effort:
    return Effort(time_limit_s=time_limit_s, recompute="recompute" in actions, split="split" in actions)


def _peak(found: Solution) -> int:
    return found.peak_bytes


def prepare_step(
    model: nn.Module,
    loss_fn: Callable[..., Any],
    batch: Any,
    optimizer: Optimizer,
    *,
    op_seconds: Callable[[OpWork], float] | None = None,
) -> PreparedStep:
    """Captures a whole training step and profiles its operators one at a time on scratch tensors.

    The step itself is not run: parameters, buffers and the random generator stay as they are.

    Args:
        model: In the mode (train or eval) that it will be trained in.
        loss_fn: `loss_fn(model(x), y) -> scalar`, or `(scalar, aux)`; with a dictionary batch `loss_fn(model, batch)`.
        batch: `(x, y)` or one dictionary of tensors; its shapes are the program's.
        optimizer: `SGD`, `Adam`, `AdamW` or another `protocols.Optimizer`.
        op_seconds: Prices operators on another device; without it they are timed here.

    Raises:
        CaptureError: The model does not trace.
        ConfigError: Batch or loss of another form; nothing to train.
    """
    batch = tuple(batch) if isinstance(batch, list) else batch
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"optimizer must be fh.SGD, fh.Adam, fh.AdamW or another Optimizer, got {type(optimizer).__name__}"
        )
    elsewhere = {t.device.type for t in (*model.parameters(), *model.buffers())} - {"cpu"}
    if elsewhere:
        raise ConfigError(f"the model must be on the CPU in this version, found it on {', '.join(sorted(elsewhere))}")
    raw, spec = capture_step(model, loss_fn, batch)
    graph = rewrite(raw)
    updates = updates_of(graph)
    costs = profile_step(raw, graph, updates, optimizer, timed=op_seconds is None)
    raw, graph = costs.with_hidden_bytes(raw), costs.with_hidden_bytes(graph)
    if op_seconds is not None:
        costs = costs.priced(op_seconds)
    return PreparedStep(
        model=model,
        loss_fn=loss_fn,
        optimizer=optimizer,
        example=batch,
        spec=spec,
        raw=raw,
        graph=graph,
        updates=updates,
        costs=costs,
        fingerprint=fingerprint(graph, f"{type(optimizer).__name__}{optimizer.state_names}"),
        threads=torch.get_num_threads(),
    )
