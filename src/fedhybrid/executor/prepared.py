"""A captured and profiled step, which can be planned for any budget and compiled for any plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from fedhybrid.errors import ConfigError, InfeasibleBudgetError
from fedhybrid.executor.bound import BoundModel, Layouts
from fedhybrid.executor.closing import Closing, closing_of, whole_plan
from fedhybrid.executor.forms import update_form
from fedhybrid.executor.lower import lower
from fedhybrid.executor.options import LOSS_FREE, PlanOptions
from fedhybrid.executor.program import ProgramRunner
from fedhybrid.executor.sensitivity import gradient_errors
from fedhybrid.graph import BatchSpec, StepGraph
from fedhybrid.opwork import OpWork
from fedhybrid.planner import (
    SOLVERS,
    CostTable,
    Effort,
    PackCost,
    Plan,
    Problem,
    Solution,
    Update,
    build_schedule,
    describe_peak,
    eager_timeline,
    make_plan,
    make_problem,
    plan_decisions,
    with_packs,
)
from fedhybrid.planner.packs import LOSSY, OFFLOAD
from fedhybrid.planner.solvers import smallest_of
from fedhybrid.protocols import Optimizer
from fedhybrid.units import Budget, parse_budget

__all__ = ["PreparedStep"]

_AUTO = "milp"


@dataclass(frozen=True, kw_only=True)
class PreparedStep:
    """One model, loss, batch shape and optimizer: captured once, planned and compiled as often as wanted.

    Attributes:
        fingerprint: Of the graph; plans carry it.
        example: The batch that it was captured with (used by `TrainStep.measure`, never copied).
        spec: Of a whole batch; with micro-batches, `raw` and `graph` are of one of them.
        norm_bytes: Scratch of clipping here, and in eager PyTorch; zeros without clipping.
        op_seconds: What priced the operators, if they were not timed here.
        modes: Which modules were in training mode.
        pack_costs: What codecs cost here, as far as it has been measured.
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
    clip_norm: float | None = None
    micro_batches: int = 1
    norm_bytes: tuple[int, int] = (0, 0)
    op_seconds: Callable[[OpWork], float] | None = None
    modes: Mapping[str, bool] = field(default_factory=dict)
    pack_costs: dict[str, PackCost] = field(default_factory=dict)

    mode = "program"

    @cached_property
    def problem(self) -> Problem:
        """The step as the solvers see it; with micro-batches, the program of one of them."""
        return self._offer((), {})

    @cached_property
    def _bare_problem(self) -> Problem:
        """Without packs."""
        timeline = eager_timeline(
            self.raw,
            self.costs,
            self.optimizer,
            norm_bytes=self.norm_bytes[1],
            micro_batches=self.micro_batches,
        )
        held = self.micro_batches == 1 and self.clip_norm is not None
        problem = make_problem(
            self.graph,
            self.costs,
            update_form(self.optimizer, self.clip_norm, self.micro_batches),
            eager_timeline=timeline,
            eager_backward_at=self.raw.backward_at,
            hold_gradients=held,
            held_bytes=self.closing.held_bytes,
        )
        if not held:
            return problem
        # The norm is taken right before the first update, which counts its scratch.
        first, *others = problem.updates
        first = replace(first, workspace_bytes=max(first.workspace_bytes, self.norm_bytes[0]))
        return replace(problem, updates=[first, *others])

    def _offer(self, actions: Sequence[str], errors: Mapping[tuple[int, str], float]) -> Problem:
        return with_packs(self._bare_problem, actions, errors=errors, op_seconds=self.op_seconds, known=self.pack_costs)

    def problem_with(self, actions: Sequence[str]) -> Problem:
        """The problem with what these actions offer beside the loss-free packs.

        "encode" measures once how much each pack changes the gradient, in real steps on the example batch.
        """
        asked = tuple(sorted({"encode", "offload"} & set(actions)))
        if asked and asked not in self._problems:
            self._problems[asked] = self._offer(asked, self._errors if "encode" in asked else {})
        return self._problems[asked] if asked else self.problem

    @cached_property
    def _errors(self) -> dict[tuple[int, str], float]:
        problem = self._offer(("encode",), {(s, c): 0.0 for s in self._bare_problem.uses for c in LOSSY})
        small = plan_decisions(problem, self.smallest(actions=("recompute",)))
        return gradient_errors(
            problem,
            BoundModel(self.model, self.layouts),
            self.example,
            lambda decisions: self._runner(Solution.of(problem, {**small, **decisions}), problem),
        )

    @cached_property
    def _problems(self) -> dict[tuple[str, ...], Problem]:
        return {}

    @cached_property
    def closing(self) -> Closing:
        """What follows the last micro-batch."""
        return closing_of(
            self.graph,
            self.updates,
            self.costs,
            self.optimizer,
            micro_batches=self.micro_batches,
            norm_bytes=self.norm_bytes[0],
        )

    @cached_property
    def layouts(self) -> Layouts:
        """Of the model's parameters and buffers."""
        return Layouts.of_graph(self.graph)

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the parameters that the step updates, in the model's order."""
        return tuple(update.name for update in self.updates)

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
        return self.resident_bytes + max(build_schedule(self.problem, {}).peak_bytes, self.closing.peak_bytes)

    @property
    def kernel_s(self) -> float:
        """Sum over the distinct operators of their seconds."""
        return self.costs.kernel_s

    def priced(self, op_seconds: Callable[[OpWork], float]) -> PreparedStep:
        """The same step on another device: seconds by `op_seconds`, bytes as measured here."""
        return replace(self, costs=self.costs.priced(op_seconds), op_seconds=op_seconds)

    def compile(self, plan: Plan) -> ProgramRunner:
        """The plan's program.

        Raises:
            ConfigError: The plan names what this step does not have.
        """
        problem = self._problem_of(plan)
        return self._runner(Solution.of(problem, plan_decisions(problem, plan)), problem)

    def _problem_of(self, plan: Plan) -> Problem:
        """The problem with the packs that a plan uses; its own error is taken as it says, spread over them."""
        codecs = {d.action.removeprefix("encode:") for d in plan.decisions if d.action.startswith("encode:")} - {"bits"}
        if not codecs:
            return self.problem
        lossy = [(d.storage, d.action.removeprefix("encode:")) for d in plan.decisions if "affine" in d.action]
        errors = dict.fromkeys(lossy, plan.gradient_error / max(len(lossy), 1) ** 0.5)
        actions = [*(["encode"] if lossy else []), *(["offload"] if OFFLOAD in codecs else [])]
        return self._offer(actions, errors)

    def _runner(self, found: Solution, problem: Problem) -> ProgramRunner:
        return ProgramRunner(
            program=lower(problem, found.schedule, self.updates),
            found=found,
            spec=self.spec,
            updates=self.updates,
            clip_norm=self.clip_norm,
            micro_batches=self.micro_batches,
            aux=None if self.graph.aux is None else self.graph.values[self.graph.aux],
        )

    def keep_all(self) -> Plan:
        """The plan that decides nothing."""
        effort = Effort()
        return self._plan(SOLVERS["keep-all"](self.problem, 0, effort), None, "keep-all")

    def smallest(self, *, actions: Sequence[str] = LOSS_FREE) -> Plan:
        """The plan of the smallest peak that the default solver finds with these actions."""
        return self._plan(self._smallest(tuple(actions)), None, _AUTO)

    def plan(
        self,
        budget: str | int | Budget,
        *,
        actions: Sequence[str] = LOSS_FREE,
        solver: str = "auto",
        max_gradient_error: float = 0.0,
        time_limit_s: float | None = None,
    ) -> Plan:
        """The cheapest plan found whose peak is within the budget.

        Args:
            budget: Bytes, "96 MiB", or "40%" (R + 0.4 A).
            actions: What the plan may do; an empty sequence allows nothing but the captured program.
            solver: A name of `SOLVERS`, or "auto".
            max_gradient_error: Cap on the relative L2 error of the whole gradient, as measured on the example batch
                with the weights at the time of planning; only "encode" makes one.
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
        effort = _effort(actions, max_error=max_gradient_error, time_limit_s=time_limit_s)
        problem = self.problem_with(actions)
        found = solve(problem, room, effort)
        if max(found.peak_bytes, self.closing.peak_bytes) > room:
            smallest = found
            if solver == "auto" and actions:
                # Near the floor the search needs more work than it is given for an ordinary budget.
                smallest = min(found, self._smallest(tuple(actions), max_gradient_error), key=_peak)
                # What was proven for the floor's own budget does not hold for a larger one.
                found = replace(smallest, bound_seconds=min(found.bound_seconds, smallest.extra_seconds))
            peak_bytes = max(smallest.peak_bytes, self.closing.peak_bytes)
            if peak_bytes > room:
                closes = self.closing.peak_bytes >= smallest.peak_bytes
                raise InfeasibleBudgetError(
                    needed_bytes=self.resident_bytes + peak_bytes,
                    budget_bytes=limit,
                    blocker=self.closing.peak_op if closes else describe_peak(problem, smallest),
                )
        plan = self._plan(found, limit, name)
        if plan.gradient_error > max_gradient_error * (1 + 1e-9):
            raise ConfigError(
                f"the solver {name!r} does not keep to max_gradient_error={max_gradient_error}: its plan has "
                f"{plan.gradient_error:.4f}. Raise the cap, or let solver='auto' choose."
            )
        return plan

    def planned(self, budget: str | int | Budget, options: PlanOptions) -> Plan:
        """As `plan`."""
        return self.plan(budget, **vars(options))

    def confirmed(self, plan: Plan, runner: ProgramRunner) -> Plan:
        """The plan with this machine's figures; they differ where operators need other scratch memory.

        Args:
            plan: Made here or elsewhere.
            runner: What `compile` made of it here.

        Raises:
            InfeasibleBudgetError: Here the plan's peak is above the budget that it was made for.
        """
        if self.resident_bytes + max(runner.found.peak_bytes, self.closing.peak_bytes) == plan.peak_bytes:
            return plan
        plan = self._plan(runner.found, plan.budget_bytes, plan.solver)
        if plan.budget_bytes is not None and plan.peak_bytes > plan.budget_bytes:
            raise InfeasibleBudgetError(
                needed_bytes=plan.peak_bytes, budget_bytes=plan.budget_bytes, blocker=plan.peak_op
            )
        return plan

    def _smallest(self, actions: tuple[str, ...], max_error: float = 0.0) -> Solution:
        key = actions, max_error
        if key not in self._floors:
            self._floors[key] = smallest_of(
                self.problem_with(actions), SOLVERS[_AUTO], lambda: _effort(actions, max_error=max_error)
            )
        return self._floors[key]

    @cached_property
    def _floors(self) -> dict[tuple[tuple[str, ...], float], Solution]:
        return {}

    def _plan(self, found: Solution, budget_bytes: int | None, solver: str) -> Plan:
        plan = make_plan(
            found.problem,
            found,
            fingerprint=self.fingerprint,
            budget_bytes=budget_bytes,
            solver=solver,
            threads=self.threads,
        )
        return whole_plan(plan, self.closing, self.micro_batches)


def _effort(actions: Sequence[str], *, max_error: float = 0.0, time_limit_s: float | None = None) -> Effort:
    return Effort(
        time_limit_s=time_limit_s,
        recompute="recompute" in actions,
        split="split" in actions,
        max_error=max_error,
    )


def _peak(found: Solution) -> int:
    return found.peak_bytes
