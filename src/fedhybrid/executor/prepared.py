"""A captured and profiled step, which can be planned for any budget and compiled for any plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from fedhybrid.errors import InfeasibleBudgetError
from fedhybrid.executor.bound import BoundModel, Layouts
from fedhybrid.executor.closing import Closing, closing_of, whole_plan
from fedhybrid.executor.finding import AUTO, effort_for, find_plan
from fedhybrid.executor.forms import update_form
from fedhybrid.executor.lower import lower
from fedhybrid.executor.options import LOSS_FREE, PlanOptions
from fedhybrid.executor.program import AuxLayout, ProgramRunner
from fedhybrid.executor.sensitivity import CodecOf, gradient_errors
from fedhybrid.executor.sketch import GradientSketch, sketch_of
from fedhybrid.graph import BatchSpec, StepGraph
from fedhybrid.opwork import OpWork
from fedhybrid.planner import (
    LOSSY,
    MENU,
    OFFLOAD,
    SOLVERS,
    CostTable,
    Effort,
    Packable,
    PackCost,
    Plan,
    Problem,
    Solution,
    Update,
    build_schedule,
    eager_timeline,
    make_plan,
    make_problem,
    plan_decisions,
    with_packs,
)
from fedhybrid.planner.solvers import smallest_of
from fedhybrid.planner.spreading import Spreading
from fedhybrid.protocols import Optimizer
from fedhybrid.units import Budget, parse_budget

__all__ = ["PreparedStep"]


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
        pack_errors: What lossy packs of each choice of codecs do to the gradient, as far as it has been measured.
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
    pack_errors: dict[tuple[str, ...], dict[tuple[int, str], float]] = field(default_factory=dict)

    mode = "program"

    @cached_property
    def problem(self) -> Problem:
        """The step as the solvers see it; with micro-batches, the program of one of them."""
        return self._offer((), (), {})

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

    @cached_property
    def packable(self) -> Packable:
        """Which storages may be packed, and how."""
        return Packable(self.graph)

    def _offer(self, actions: Sequence[str], codecs: Sequence[str], errors: Mapping[tuple[int, str], float]) -> Problem:
        return with_packs(
            self._bare_problem,
            actions,
            codecs=codecs,
            packable=self.packable,
            errors=errors,
            op_seconds=self.op_seconds,
            known=self.pack_costs,
        )

    def problem_with(self, actions: Sequence[str], codecs: Sequence[str] = MENU, *, measured: bool = True) -> Problem:
        """The problem with what these actions offer beside the loss-free packs.

        "encode" measures once how much each pack changes the gradient, in real steps on the example batch, unless all
        errors are to count as 0 (`measured=False`).
        """
        asked = tuple(sorted({"encode", "offload"} & set(actions)))
        if not asked:
            return self.problem
        menu = tuple(codecs) if "encode" in asked else ()
        if (asked, menu, measured) not in self._problems:
            errors = {} if not menu else self._errors(menu) if measured else self._no_errors(menu)
            self._problems[asked, menu, measured] = self._offer(asked, menu, errors)
        return self._problems[asked, menu, measured]

    def _no_errors(self, codecs: Sequence[str]) -> dict[tuple[int, str], float]:
        return {(s, c): 0.0 for s in self._bare_problem.uses for c in codecs}

    def _errors(self, codecs: tuple[str, ...]) -> dict[tuple[int, str], float]:
        if codecs not in self.pack_errors:
            problem = self._offer(("encode",), codecs, self._no_errors(codecs))
            spreading = Spreading(problem)
            small = plan_decisions(problem, self.smallest(actions=("recompute",)))

            def runner_of(decisions: Mapping[int, int], codec_of: CodecOf) -> ProgramRunner:
                kept = {d: 0 for storage in decisions for d in spreading.dependents[storage]}
                return self._runner(Solution.of(problem, {**small, **kept, **decisions}), problem, codec_of)

            bound = BoundModel(self.model, self.layouts)
            self.pack_errors[codecs] = gradient_errors(problem, self.packable, bound, self.example, runner_of)
        return self.pack_errors[codecs]

    @cached_property
    def _problems(self) -> dict[tuple[tuple[str, ...], tuple[str, ...], bool], Problem]:
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
        codecs = {d.action.removeprefix("encode:") for d in plan.decisions if d.action.startswith("encode:")}
        if not codecs & {*LOSSY, OFFLOAD}:
            return self.problem
        packed = [(d.storage, d.action.removeprefix("encode:")) for d in plan.decisions]
        lossy = [(s, c) for s, c in packed if c in LOSSY]
        errors = dict.fromkeys(lossy, (plan.gradient_error or 0.0) / max(len(lossy), 1) ** 0.5)
        actions = [*(["encode"] if lossy else []), *(["offload"] if OFFLOAD in codecs else [])]
        return self._offer(actions, sorted({c for _, c in lossy}), errors)

    def _runner(self, found: Solution, problem: Problem, codec_of: CodecOf | None = None) -> ProgramRunner:
        return ProgramRunner(
            program=lower(problem, found.schedule, self.updates, codec_of or self.packable.codec),
            found=found,
            spec=self.spec,
            updates=self.updates,
            clip_norm=self.clip_norm,
            micro_batches=self.micro_batches,
            aux=self._aux_layout(),
        )

    def _aux_layout(self) -> AuxLayout | None:
        if self.graph.aux is None:
            return None
        value = self.graph.values[self.graph.aux]
        return AuxLayout(shape=value.shape, dtype=value.dtype)

    def keep_all(self) -> Plan:
        """The plan that decides nothing."""
        effort = Effort()
        return self.written(SOLVERS["keep-all"](self.problem, 0, effort), None, "keep-all")

    def smallest(self, *, actions: Sequence[str] = LOSS_FREE) -> Plan:
        """The plan of the smallest peak that the default solver finds with these actions."""
        return self.written(self.floor_of(self.problem_with(actions), tuple(actions)), None, AUTO)

    def repriced(self, plan: Plan) -> Plan:
        """A plan of this step that was made for another device: the same decisions, this device's seconds."""
        problem = self._problem_of(plan)
        return self.written(Solution.of(problem, plan_decisions(problem, plan)), plan.budget_bytes, plan.solver)

    def solved_by(self, solver: str) -> Plan:
        """The plan of a solver that does not look at the budget, such as "checkpoint-blocks"."""
        return self.written(SOLVERS[solver](self.problem, 0, Effort()), None, solver)

    def packed_whole(self, codec: str) -> Plan:
        """The plan that packs every tensor that this lossy codec may pack, and recomputes nothing.

        Raises:
            ConfigError: No such codec.
        """
        PlanOptions(actions=("encode",), codecs=(codec,), max_gradient_error=math.inf)
        problem = self.problem_with(("encode",), (codec,), measured=False)
        solver = "all-encoded"
        return replace(self.written(SOLVERS[solver](problem, 0, Effort()), None, solver), gradient_error=None)

    def plan(
        self,
        budget: str | int | Budget,
        *,
        actions: Sequence[str] = LOSS_FREE,
        solver: str = "auto",
        max_gradient_error: float = 0.0,
        time_limit_s: float | None = None,
        codecs: Sequence[str] = MENU,
    ) -> Plan:
        """The cheapest plan found whose peak is within the budget.

        Args:
            budget: Bytes, "96 MiB", or "40%" (R + 0.4 A).
            actions: What the plan may do; an empty sequence allows nothing but the captured program.
            solver: A name of `SOLVERS`, or "auto".
            max_gradient_error: Cap on the relative L2 error of the whole gradient, as measured on the example batch
                with the weights at the time of planning; only "encode" makes one. Infinity: no cap, nothing measured.
            codecs: What "encode" may choose from, for each tensor.
            time_limit_s: Wall-clock limit; without one the effort is bounded by work alone and so reproducible.

        Raises:
            InfeasibleBudgetError: No plan found fits; says how much is needed and which operator blocks.
            ConfigError: An unknown action or solver, a budget that is none.
        """
        options = PlanOptions(
            actions=actions,
            solver=solver,
            max_gradient_error=max_gradient_error,
            time_limit_s=time_limit_s,
            codecs=codecs,
        )
        return self.planned(budget, options)

    def planned(self, budget: str | int | Budget, options: PlanOptions) -> Plan:
        """As `plan`."""
        limit_bytes = parse_budget(budget).resolve_bytes(
            resident_bytes=self.resident_bytes, eager_peak_bytes=self.eager_peak_bytes
        )
        return find_plan(self, limit_bytes, options)

    def exact_sketch(self) -> GradientSketch:
        """Of the exact gradient on the example batch, by one step of a small exact plan."""
        runner = self.compile(self.smallest(actions=("recompute",)))
        return sketch_of(runner, BoundModel(self.model, self.layouts), self.example)

    def error_of(self, found: Solution, exact: GradientSketch) -> float:
        """Relative L2 error of the gradient that a solution really gives on the example batch (estimated to about 2 %).

        Costs a step; model and generator are left as they were.
        """
        runner = self._runner(found, found.problem)
        return sketch_of(runner, BoundModel(self.model, self.layouts), self.example).error_from(exact)

    def confirmed(self, plan: Plan, runner: ProgramRunner) -> Plan:
        """The plan with this machine's figures; they differ where operators need other scratch memory.

        Args:
            plan: Made here or elsewhere.
            runner: What `compile` made of it here.

        Raises:
            InfeasibleBudgetError: Here the plan's peak is above the budget that it was made for.
        """
        assert runner.found is not None, "compiled here"
        if self.resident_bytes + max(runner.found.peak_bytes, self.closing.peak_bytes) == plan.peak_bytes:
            return plan
        error = plan.gradient_error
        plan = replace(self.written(runner.found, plan.budget_bytes, plan.solver), gradient_error=error)
        if plan.budget_bytes is not None and plan.peak_bytes > plan.budget_bytes:
            raise InfeasibleBudgetError(
                needed_bytes=plan.peak_bytes, budget_bytes=plan.budget_bytes, blocker=plan.peak_op
            )
        return plan

    def floor_of(self, problem: Problem, actions: tuple[str, ...], max_error: float = 0.0) -> Solution:
        """The solution of the smallest peak that the default solver finds for a problem of this step."""
        key = id(problem), actions, max_error
        if key not in self._floors:
            found = smallest_of(problem, SOLVERS[AUTO], lambda: effort_for(actions, max_error=max_error))
            self._floors[key] = problem, found  # the problem too, so that its number stays its own
        return self._floors[key][1]

    @cached_property
    def _floors(self) -> dict[tuple[int, tuple[str, ...], float], tuple[Problem, Solution]]:
        return {}

    def written(self, found: Solution, budget_bytes: int | None, solver: str) -> Plan:
        """A solution as a plan."""
        plan = make_plan(
            found.problem,
            found,
            fingerprint=self.fingerprint,
            budget_bytes=budget_bytes,
            solver=solver,
            threads=self.threads,
        )
        return whole_plan(plan, self.closing, self.micro_batches)
